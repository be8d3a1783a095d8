"""demo: from nothing to answers in minutes."""

from __future__ import annotations

import time
from pathlib import Path

import click
from rich.text import Text

from .app import command, out, show, stop_on_signals, threads_option


@command("demo", click.option("-o", "--out", "folder", type=click.Path(path_type=Path),
                              help="New folder for the adapter [edgetune-demo]."),
         click.option("--seed", type=click.IntRange(0), default=0, show_default=True, help="Seed of the run."),
         threads_option)
def demo_command(folder: Path | None, seed: int, threads: int, as_json: bool) -> None:
    """Teach SmolLM2-135M to turn home commands into JSON: a few minutes on two cores.

    It measures the held-out rows through llama.cpp, trains a LoRA on 400 others, measures again and shows five
    requests with both answers.
    """
    from ..console import TrainProgress, duration, say
    from ..demo import run as demo
    began = time.monotonic()
    with stop_on_signals() as should_stop, TrainProgress(out, quiet=as_json) as progress:
        result = demo.run(folder or demo.free_folder(), threads=threads, seed=seed, on_event=progress.event,
                          should_stop=should_stop,
                          say=lambda text: None if as_json else say(out, text))
    shown = result.answers[:demo.SHOWN]
    facts = {"out": str(result.folder), "before": result.before.to_json(), "after": result.after.to_json(),
             "seconds": time.monotonic() - began, "train_seconds": result.run["seconds"],
             "peak_rss_mib": result.run["peak_rss_mib"],
             "answers": shown}
    lines = [Text.assemble("\n", (a["request"], "bold"), "\n  before  ", " ".join(a["before"].split())[:out.width - 10],
                           "\n  after   ", (a["after"], "green" if a["correct"] else "red")) for a in shown]
    show(as_json, facts, *lines,
         f"\nexact answers {result.before.exact:.0%} -> {result.after.exact:.0%}, "
         f"held-out loss {result.before.loss:.3f} -> {result.after.loss:.3f}, {duration(facts['seconds'])} in all, "
         f"peak memory of training {result.run['peak_rss_mib']:.0f} MiB",
         f"talk to it: edgetune chat {demo.model_path()} --adapter {result.folder} --system '{demo.SYSTEM}'")
