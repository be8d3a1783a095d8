"""mix."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from ...cli.app import command, show
from ...cli.data import data
from ...errors import shell_word

if TYPE_CHECKING:
    from rich.table import Table

    from .mix import MixReport


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
    show(as_json, {"out": str(to), **report.as_json()}, f"{report.rows} rows in {to}, {report.digest[:19]}", "",
         table_of(report), "", f"next: edgetune data check {shell_word(to)} MODEL")


def table_of(report: MixReport) -> Table:
    """A line for each source: its rows, those left out, those drawn."""
    from ...console import table
    cells = [[name, *map(str, (each.read, each.unusable + each.no_option, each.repeated, each.held_out, each.taken,
                               each.few_shot, each.inverted))] for name, each in report.sources.items()]
    heads = ["source", "rows", "unusable", "repeated", "held out", "taken", "few shot", "inverted"]
    return table("", heads, cells, tuple(range(1, 8)))


