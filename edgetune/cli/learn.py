"""train."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from .app import MODEL, command, governor_of, out, policy_file_option, policy_options, show, stop_on_signals
from .objective import ObjectiveCommand, take_objective
from .sweep import sweep_options, sweep_table, take_grid

if TYPE_CHECKING:
    from ..runs.result import Result

answers_option = click.option("--answers/--no-answers", default=True, show_default=True,
                              help="Put held-out questions to the model before and after.")


@command("train", MODEL, click.argument("data", type=click.Path(path_type=Path)),
         click.option("-o", "--out", "folder", type=click.Path(path_type=Path), required=True,
                      help="New folder for the adapter."),
         click.option("--eval", "held_out", metavar="FILE|none", help="Held-out rows: their loss is measured, the best "
                      "adapter kept and their questions answered; none: learn all rows [a tenth of DATA]."),
         answers_option,
         click.option("--resume", is_flag=True, help="Continue the run in the output folder from its last "
                      "checkpoint, to the same bytes; start again if it was killed before the first."),
         click.option("--allow-changed", metavar="NAME", multiple=True, help="With --resume: continue although this "
                      "has changed since the run was started: data, held-out, base, isa, version or the name of an "
                      "option. Steps done stay, the rest uses the new value: the adapter is none that an uninterrupted "
                      "run would give; run.json lists what changed."), sweep_options,
         policy_file_option, policy_options, cls=ObjectiveCommand)
def train_command(model: Path, data: Path, folder: Path, held_out: str | None, policy_file: Path | None, as_json: bool,
                  **options: Any) -> None:
    """Train a LoRA on MODEL (a GGUF or a bundle) with the rows of DATA.

    \b
    DATA is .jsonl, one row a line, in one of three shapes; plain .txt; or - for
    rows from standard input:
      {"messages": [{"role": "user", "content": "..."}, ...]}
      {"prompt": "...", "completion": "..."}
      {"text": "..."}

    The loss counts answers only (every assistant turn, the completion), and all of a text. The output folder contains
    adapter.gguf for llama.cpp, run.json and metrics.jsonl. Ctrl-C and SIGTERM save and exit with 75; --resume
    continues. Several numbers, as in --lr 1e-4,5e-4, make a run each in a folder of OUT, and a table. The exit code is
    1 where the adapter is worse than no training.
    """
    from ..console import TrainProgress
    from ..runs.sweep import BEST, sweep
    from ..runs.train import train
    options["governor"] = governor_of(policy_file, options)
    options["objective"] = take_objective(options)
    grid = take_grid(options)
    with stop_on_signals() as should_stop, TrainProgress(out, quiet=as_json) as progress:
        options |= {"should_stop": should_stop, "on_event": progress.event}
        if grid:
            found = sweep(model, data, folder, held_out, grid=grid, **options)
        else:
            result = train(model, data, folder, held_out, **options)
    if not grid:
        show(as_json, {"out": str(folder), **result.record}, *result_lines(result), *try_lines(result, model, folder))
        end(result)
    elif found.best and found.best.result:
        best = found.best.result
        show(as_json, {"out": str(folder), **found.to_json()}, sweep_table(found), *result_lines(best),
             *try_lines(best, model, folder / BEST))
        end(best)
    else:
        show(as_json, {"out": str(folder), **found.to_json()}, sweep_table(found))
        click.get_current_context().exit(1)


def result_lines(result: Result) -> list[Any]:
    """What became of a run: its cost, three questions with their answers, its scores and the verdict."""
    from ..console import duration, pair_lines
    return [f"{result.steps} steps in {duration(result.seconds)}, peak memory "
            f"{result.record['peak_rss_mib']:.0f} MiB", *pair_lines(result.pairs, out.width),
            *([""] if result.pairs else []), *(f"{what} {before} -> {after}" for what, before, after in result.facts()),
            result.verdict]


def try_lines(result: Result, model: Path, folder: Path) -> list[str]:
    """Where the adapter is, and how to talk to it, unless it is worse than nothing."""
    if result.is_worse:
        return [f"adapter in {folder}"]
    system = str(result.record["options"]["system"])
    return [f"adapter in {folder}; try: edgetune chat {model} --adapter {folder}"
            f"{f' --system {shlex.quote(system)}' if system else ''}"]


def end(result: Result) -> None:
    """The exit code of a command that trained."""
    if result.is_worse:
        click.get_current_context().exit(1)
