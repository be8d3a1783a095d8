"""data make and data mix: rows from what a person has, and rows of several tasks in one file."""

from __future__ import annotations

from contextlib import closing
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from ...cli.app import DATA, ModelPath, command, config_options, out, show, step_progress, threads_option
from ...cli.data import data
from ...errors import shell_word
from ...options import declared
from .options import DocumentOptions, LogOptions, OpenWebuiOptions, PassageOptions, TemplateOptions

if TYPE_CHECKING:
    from rich.table import Table

    from .mix import MixReport
    from .output import Made

OUT = click.option("-o", "--out", "to", type=click.Path(path_type=Path), required=True, help="New file of rows.")


@data.group("make")
def make() -> None:
    """Make rows from what you have."""


def options_of(kind: type) -> Any:
    return config_options(*(spec.name for spec in declared(kind)), of=kind, grouped=False)


@command("templates", click.argument("spec", type=click.Path(path_type=Path)), OUT,
         click.option("--test", type=click.Path(path_type=Path), help="New file of test rows, from templates of which "
                      "none is learned."),
         options_of(TemplateOptions), group=make)
def make_templates(spec: Path, to: Path, test: Path | None, as_json: bool, **options: Any) -> None:
    """Make rows from intents, their wordings and values.

    SPEC is a YAML file: docs/how-to/rows-from-what-you-have.md. The same SPEC and seed give the same rows.
    """
    from .templates import make_from_templates
    if test is None:
        options["test_count"] = 0
    write(make_from_templates(spec, TemplateOptions(**options)), to, test, as_json)


@command("open-webui", click.argument("export", type=click.Path(path_type=Path)), OUT, options_of(OpenWebuiOptions),
         group=make)
def make_open_webui(export: Path, to: Path, as_json: bool, **options: Any) -> None:
    """Make rows from the feedback of an Open WebUI server.

    EXPORT is the JSON file that its settings write under Evaluations. Nothing is sent anywhere.
    """
    from .open_webui import make_from_open_webui
    write(make_from_open_webui(export, OpenWebuiOptions(**options)), to, None, as_json)


@command("log", click.argument("log", type=click.Path(path_type=Path)), OUT, options_of(LogOptions), group=make)
def make_log(log: Path, to: Path, as_json: bool, **options: Any) -> None:
    """Make rows from a log of answers.

    Only answers that somebody confirmed are kept. Calls that today's tools do not take are dropped and counted.
    """
    from .log import make_from_log
    write(make_from_log(log, LogOptions(**options)), to, None, as_json)


@command("documents", click.argument("folder", type=click.Path(path_type=Path)),
         click.argument("model", type=ModelPath(), required=False), OUT,
         click.option("--url", default="", help="An OpenAI-compatible endpoint that writes the questions, up to /v1; "
                      "MODEL is the name of its model."),
         click.option("--key-file", type=click.Path(path_type=Path), help="File that holds the endpoint's key."),
         options_of(DocumentOptions), threads_option, group=make)
def make_documents(folder: Path, model: Path | None, to: Path, url: str, key_file: Path | None, threads: int,
                   as_json: bool, **options: Any) -> None:
    """Make questions and answers from documents.

    FOLDER holds text, Markdown, PDF or JSON Lines. MODEL writes questions about each chunk; without it, rules make
    gaps of sentences. An answer is kept only if it stands in its chunk.
    """
    from ...disk import read_key_file, refuse_existing
    from ...errors import UsageError
    from .askers import LocalAsker, RemoteAsker
    from .documents import make_from_documents
    refuse_existing(to)
    if url and model is None:
        raise UsageError("--url is given without MODEL", "name the endpoint's model")
    given = DocumentOptions(**options)
    if model is None:
        made = make_from_documents(folder, given)
    else:
        key = read_key_file(key_file) if key_file else ""
        with closing(RemoteAsker(url, str(model), key) if url else LocalAsker(model, threads)) as asker, \
                step_progress(out, as_json) as progress:
            made = make_from_documents(folder, given, asker, progress.step)
    write(made, to, None, as_json)


@command("passages", DATA, click.argument("index", type=click.Path(path_type=Path)), OUT, options_of(PassageOptions),
         threads_option, group=make)
def make_passages(data: Path, index: Path, to: Path, threads: int, as_json: bool, **options: Any) -> None:
    """Put passages of an index before the questions of rows.

    A model that is trained on them learns to answer from documents. A row is kept only if its answer stands in a
    passage that its question finds.
    """
    from ...disk import refuse_existing
    from ..documents.search import Index
    from .passages import make_with_passages
    refuse_existing(to)
    with Index(index, threads) as opened, step_progress(out, as_json) as progress:
        made = make_with_passages(data, opened, PassageOptions(**options), progress.step)
    write(made, to, None, as_json)


def write(made: Made, to: Path, test: Path | None, as_json: bool) -> None:
    """Writes the rows and shows the report."""
    from .output import write_made
    write_made(made, to, test)
    held_out = [f"{len(made.held_out)} test rows in {test}"] if test else []
    show(as_json, {"out": str(to), "test": str(test) if test else None, **made.as_json()},
         f"{len(made.rows)} rows in {to}, of {made.read} read", *held_out, *dropped(made),
         *(f"note: {note}" for note in made.notes), f"next: edgetune data check {shell_word(to)} MODEL")


def dropped(made: Made) -> list[str | Table]:
    """A table of what was dropped, and why; nothing where nothing was."""
    from ...console import table
    if not made.dropped:
        return []
    cells = [[reason, str(count)] for reason, count in made.dropped.most_common()]
    return ["", table("", ["dropped", "records"], cells, (1,)), ""]


@command("mix", click.argument("spec", type=click.Path(path_type=Path)),
         click.option("-o", "--out", "to", type=click.Path(path_type=Path), required=True, help="New file of rows."),
         click.option("--seed", type=click.IntRange(0), default=0, show_default=True,
                      help="Decides which rows are drawn, and their wordings."), group=data)
def mix_command(spec: Path, to: Path, seed: int, as_json: bool) -> None:
    """Mix rows of several tasks into one file.

    SPEC is a YAML file with sources, their templates and shares: docs/how-to/data-files.md. Rows that nearly repeat
    another, or overlap held-out ones, are left out. The same SPEC, files and seed give the same bytes.
    """
    from ...disk import json_lines, refuse_existing, replaced
    from .mix import mix
    refuse_existing(to)
    rows, report = mix(spec, seed)
    with replaced(to) as beside:
        beside.write_text(json_lines(rows), encoding="utf-8")
    show(as_json, {"out": str(to), **asdict(report)}, f"{report.rows} rows in {to}, {report.digest[:19]}", "",
         table_of(report), "", f"next: edgetune data check {shell_word(to)} MODEL")


def table_of(report: MixReport) -> Table:
    """A line for each source: its rows, those left out, those drawn."""
    from ...console import table
    cells = [[name, *map(str, (each.read, each.unusable + each.no_option, each.repeated, each.held_out, each.taken,
                               each.few_shot, each.inverted))] for name, each in report.sources.items()]
    heads = ["source", "rows", "unusable", "repeated", "held out", "taken", "few shot", "inverted"]
    return table("", heads, cells, tuple(range(1, 8)))
