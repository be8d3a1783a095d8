"""train and plan."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click
from rich.console import Console

from ..config import TrainConfig
from .app import MODEL, command, out, show, stop_on_signals, train_options


@command("train", MODEL, click.argument("data", type=click.Path(path_type=Path)),
         click.option("-o", "--out", "folder", type=click.Path(path_type=Path), required=True,
                      help="New folder for the adapter."),
         click.option("--eval", "held_out", type=click.Path(path_type=Path),
                      help="Held-out rows: their loss is watched and the best adapter kept."),
         click.option("--resume", is_flag=True, help="Go on with the run in the output folder from its last "
                      "checkpoint, to the same bytes; begin again where it was killed before the first."),
         click.option("--allow-changed", metavar="NAME", multiple=True, help="With --resume: go on although this is "
                      "not what the run was started with: data, held-out, base, isa, version or an option's name. "
                      "Steps done stay as they are and the rest is done with what is given now: an adapter that no "
                      "uninterrupted run gives; run.json lists what changed."), train_options)
def train_command(model: Path, data: Path, folder: Path, held_out: Path | None, resume: bool,
                  allow_changed: tuple[str, ...], as_json: bool, **options: Any) -> None:
    """Train a LoRA on MODEL (a GGUF or a bundle) with the rows of DATA.

    \b
    DATA is .jsonl, one row a line, in one of three shapes, or plain .txt:
      {"messages": [{"role": "user", "content": "..."}, {"role": "assistant", "content": "..."}]}
      {"prompt": "...", "completion": "..."}
      {"text": "..."}
    Loss counts on answers only (every assistant turn, the completion), on all of a text.
    The output folder holds adapter.gguf for llama.cpp, run.json and metrics.jsonl. Ctrl-C and
    SIGTERM save and exit with 75; --resume goes on.
    """
    from .. import train
    from ..console import TrainProgress
    config = TrainConfig(**options).check()
    bundle, rows, held = load_for_training(model, data, held_out, config, out if not as_json else None)
    with stop_on_signals() as should_stop, TrainProgress(out, quiet=as_json) as progress:
        record = train.run(bundle, rows, folder, config, held_out=held, resume=resume, allow_changed=allow_changed,
                           on_event=progress.event, should_stop=should_stop)
    show(as_json, {"out": str(folder), **record}, *train_summary(folder, model, record))


def load_for_training(model: Path, data: Path, held_out: Path | None, config: TrainConfig,
                      console: Console | None) -> tuple[Any, Any, Any]:
    from ..bundle import open_bundle
    from ..data import load
    from ..tokens import Tokenizer
    bundle = open_bundle(model)
    tokenizer = Tokenizer(bundle.gguf.path)
    try:
        sets = [load(path, tokenizer, max_length=config.max_length, system=config.system or None,
                     overflow=config.overflow) if path else None for path in (data, held_out)]
    finally:
        tokenizer.close()  # the vocabulary's memory is the training's
    for path, rows in zip((data, held_out), sets, strict=True):
        if console and rows and (rows.truncated or rows.skipped):
            console.print(f"[yellow]{path}: {rows.truncated} rows cut to {config.max_length} tokens, "
                          f"{rows.skipped} left out[/]", highlight=False, soft_wrap=True)
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


@command("plan", MODEL, click.option("--speed", type=click.Path(path_type=Path),
                                     help="What edgetune bench train --save wrote: predict tokens/s from it."),
         train_options)
def plan_command(model: Path, speed: Path | None, as_json: bool, **options: Any) -> None:
    """Print every buffer that training MODEL would hold, and what the whole process will need.

    Rows are taken to be max-length long; with shorter rows training needs less.
    """
    from ..bundle import open_bundle
    from ..console import mib, table
    from ..model import Model
    from ..trainer import make_plan
    config = TrainConfig(**options).check()
    decoder = Model(open_bundle(model).gguf)
    plan = make_plan(decoder, config)
    predicted, lines = predict(decoder.shape, plan.run, config, speed) if speed else ({}, [])
    rows = [[b.name, " x ".join(map(str, b.shape)), b.dtype, b.lifetime, mib(b.nbytes)] for b in plan.buffers]
    total = [["arena", "", "", "", mib(plan.arena_bytes)], ["weights, mapped", "", "", "", mib(plan.weight_bytes)],
             ["interpreter and libraries", "", "", "", mib(plan.process_bytes)],
             ["whole process", "", "", "", mib(plan.peak_bytes)]]
    show(as_json, plan.to_json() | predicted,
         table("", ["buffer", "shape", "type", "lifetime", "size"], rows + total, (4,)), *lines)


def predict(shape: Any, run: Any, config: TrainConfig, file: Path) -> tuple[dict[str, Any], list[str]]:
    from ..speed import predict_seconds, read_speed
    speed = read_speed(file)
    seconds = predict_seconds(shape, run, config, speed)
    rate = config.batch_size * run.max_length / seconds
    return ({"predicted": {"tokens_per_s": rate, "step_s": seconds, "speed": vars(speed)}},
            [f"predicted for full rows: {rate:.0f} tokens/s, {seconds:.2f} s a step of {config.batch_size} x "
             f"{run.max_length} tokens, at {speed.flops_per_s / 1e9:.0f} GFLOP/s as {file} says of {speed.device} "
             f"({speed.isa}, {speed.precision}, {speed.threads} threads)"])
