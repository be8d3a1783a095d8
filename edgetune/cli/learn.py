"""train."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
from rich.console import Console

from ..training.config import TrainConfig
from .app import (
    MODEL,
    command,
    governor_of,
    out,
    policy_file_option,
    policy_options,
    show,
    stop_on_signals,
    train_options,
)
from .objective import ObjectiveCommand, take_objective

if TYPE_CHECKING:
    from ..objectives.base import Objective


@command("train", MODEL, click.argument("data", type=click.Path(path_type=Path)),
         click.option("-o", "--out", "folder", type=click.Path(path_type=Path), required=True,
                      help="New folder for the adapter."),
         click.option("--eval", "held_out", type=click.Path(path_type=Path),
                      help="Held-out rows: their loss is measured and the best adapter kept."),
         click.option("--resume", is_flag=True, help="Continue the run in the output folder from its last "
                      "checkpoint, to the same bytes; start again if it was killed before the first."),
         click.option("--allow-changed", metavar="NAME", multiple=True, help="With --resume: continue although this "
                      "has changed since the run was started: data, held-out, base, isa, version or the name of an "
                      "option. Steps done stay, the rest uses the new value: the adapter is none that an uninterrupted "
                      "run would give; run.json lists what changed."), train_options,
         policy_file_option, policy_options, cls=ObjectiveCommand)
def train_command(model: Path, data: Path, folder: Path, held_out: Path | None, resume: bool,
                  allow_changed: tuple[str, ...], policy_file: Path | None, as_json: bool, **options: Any) -> None:
    """Train a LoRA on MODEL (a GGUF or a bundle) with the rows of DATA.

    \b
    DATA is .jsonl, one row a line, in one of three shapes; plain .txt; or - for
    rows from standard input:
      {"messages": [{"role": "user", "content": "..."}, ...]}
      {"prompt": "...", "completion": "..."}
      {"text": "..."}

    The loss counts answers only (every assistant turn, the completion), and all of a text. The output folder contains
    adapter.gguf for llama.cpp, run.json and metrics.jsonl. Ctrl-C and SIGTERM save and exit with 75; --resume
    continues.
    """
    from ..console import TrainProgress
    from ..training.run import run
    governor = governor_of(policy_file, options)
    objective = take_objective(options)
    config = TrainConfig(**options).check()
    if not resume:
        config.check_held_out(held_out is not None)
    bundle, rows, held = load_for_training(model, data, held_out, config, out if not as_json else None,
                                           objective)
    with stop_on_signals() as should_stop, TrainProgress(out, quiet=as_json) as progress:
        record = run(bundle, rows, folder, config, held_out=held, resume=resume, allow_changed=allow_changed,
                     on_event=progress.event, should_stop=should_stop, governor=governor, objective=objective)
    show(as_json, {"out": str(folder), **record}, *train_summary(folder, model, record))


def load_for_training(model: Path, data: Path, held_out: Path | None, config: TrainConfig,
                      console: Console | None, objective: Objective) -> tuple[Any, Any, Any]:
    from ..console import note, say
    from ..data import loader
    from ..formats.bundle import open_bundle
    bundle = open_bundle(model)
    sets = loader.load(bundle.gguf.path, (data, held_out), config, parser=objective.rows)
    for path, rows in zip((data, held_out), sets, strict=True):
        if console and rows and (rows.truncated or rows.skipped):
            say(console, note(f"{path}: {rows.truncated} rows cut to {config.max_length} tokens, {rows.skipped} left "
                              "out"))
    return bundle, sets[0], sets[1]


def train_summary(folder: Path, model: Path, record: dict[str, Any]) -> list[str]:
    from ..console import duration
    lines = [f"{record['steps']} steps in {duration(record['seconds'])}, peak memory "
             f"{record['peak_rss_mib']:.0f} MiB"]
    if held := record["held_out"]:
        before, after = (f"{held[key]:.4f}" if held[key] is not None else "unknown"
                         for key in ("loss_before", "loss_after"))
        lines.append(f"held-out loss {before} -> {after} (best at step {held['best_step']})")
    return [*lines, f"adapter in {folder}; try: edgetune chat {model} --adapter {folder}"]
