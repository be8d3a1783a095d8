"""demo: from nothing to answers in minutes."""

from __future__ import annotations

import time
from pathlib import Path
from typing import TYPE_CHECKING

import click
from rich.text import Text

from ..errors import shell_word, size_text
from .app import command, out, show, stop_on_signals, threads_option, train_progress
from .learn import verdict_line

if TYPE_CHECKING:
    from ..runs.result import Result


@command("demo", click.option("-o", "--out", "folder", type=click.Path(path_type=Path),
                              help="New folder for the adapter [edgetune-demo]."),
         click.option("--seed", type=click.IntRange(0), default=0, show_default=True, help="Seed of the run."),
         threads_option)
def demo_command(folder: Path | None, seed: int, threads: int, as_json: bool) -> None:
    """Teach SmolLM2-135M to turn home commands into JSON.

    In a few minutes it learns 400 rows, answers 60 others through llama.cpp before and after, and shows three of them.
    """
    from ..demo import run as demo
    from ..training.callbacks import RunCallbacks
    began = time.monotonic()
    with stop_on_signals() as should_stop, train_progress(as_json) as progress:
        result = demo.run(folder or demo.free_folder(), threads=threads, seed=seed,
                          callbacks=RunCallbacks(progress.event, should_stop))
    seconds = time.monotonic() - began
    show(as_json, {"out": str(result.folder), **result.record, "seconds": seconds, "train_seconds": result.seconds},
         *demo_lines(result, seconds))


def demo_lines(result: Result, seconds: float) -> list[str | Text]:
    """The verdict in a line, three requests with answers before and after, and the next command."""
    from ..console import Copied, duration, pair_lines
    peak = size_text(result.record["peak_rss_mib"] * 2**20)
    return [verdict_line(result), *pair_lines(result.pairs, out),
            f"\n{duration(seconds)} in all, peak memory {peak}",
            Copied(f"talk to it: edgetune chat smollm2 --adapter {shell_word(result.folder)}")]
