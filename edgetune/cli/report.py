"""report: a run's history as one HTML file, or several runs over one another."""

from __future__ import annotations

from pathlib import Path

import click

from ..errors import UsageError
from .app import command, out, show

SEVERAL = Path("runs.html")
WIDE = 80  # columns of a terminal in which the table has its usual spaces


@command("report", click.argument("folders", metavar="OUT...", nargs=-1, required=True,
                                  type=click.Path(path_type=Path)),
         click.option("-o", "--out", "file", type=click.Path(path_type=Path),
                      help="File to write, which is replaced [report.html in the run's folder; for several runs "
                      f"{SEVERAL} here]."))
def report_command(folders: tuple[Path, ...], file: Path | None, as_json: bool) -> None:
    """Show how a run went, or compare several.

    It is one HTML file that loads nothing from the network. OUT is the folder of a training, which may still run. For
    one run it shows the verdict, charts, answers before and after, and options; of several their losses together, and
    the options that differ.
    """
    from ..console import table
    from ..runs import comparison, report
    from ..runs.history import read_history
    if file and file.suffix not in (".html", ".htm"):
        raise UsageError(f"the report {file} would replace a file that is no HTML", "name one that ends in .html")
    if len(set(folders)) < len(folders):
        raise UsageError("a run is named twice", "name each once")
    runs = [read_history(folder) for folder in folders]
    if len(runs) > 1:
        file = file or SEVERAL
        comparison.write_comparison(file, runs)
    elif file:
        report.write_html(file, runs[0])
    else:
        file = report.write_report(folders[0])
    facts = {"report": str(file), "runs": [comparison.facts(run) for run in runs],
             "differing": comparison.differing(runs)}
    numbers = tuple(range(2, len(comparison.HEADS)))
    verdicts = [run.verdict.sentence for run in runs if run.verdict and len(runs) == 1]
    show(as_json, facts, table("", list(comparison.HEADS), comparison.lines(runs), numbers, numbers,
                               out.width < WIDE), *verdicts,
         f"report in {file}")
