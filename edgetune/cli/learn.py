"""train and resume."""

from __future__ import annotations

import re
import sys
from dataclasses import fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
from rich.text import Text

from ..errors import WORSE, UsageError, shell_word, size_text
from ..machine.policy import Policy
from .app import (
    DATA,
    MODEL,
    command,
    config_options,
    explicit,
    governor_of,
    out,
    policy_file_option,
    policy_options,
    show,
    stop_on_signals,
    train_progress,
    training_options,
)
from .configured import config_option
from .grouped import GroupedOption
from .objective import ObjectiveCommand, take_objective
from .sweep import sweep_options, sweep_table, take_grid

if TYPE_CHECKING:
    from ..runs.result import Result

allow_changed_option = click.option("--allow-changed", metavar="NAME", multiple=True, cls=GroupedOption, common=False,
                                    help="Continue a run although this has changed: data, held-out, base, isa, version "
                                    "or the name of an option. Steps done stay, the rest uses the new value; run.json "
                                    "lists what changed.")
COLOURS = {"learned": "green", "still falling": "green", "overfitted": "yellow", "unmeasured": "yellow", "worse": "red"}
answers_option = click.option("--answers/--no-answers", default=True, show_default=True, cls=GroupedOption,
                              common=False,
                              help="Put held-out questions to the model before and after.")


@command("train", MODEL, DATA,
         click.option("-o", "--out", "folder", type=click.Path(path_type=Path), required=True,
                      help="New folder for the adapter."),
         click.option("--eval", "held_out", metavar="FILE|none", help="Held-out rows, which choose the best adapter "
                      "and whose questions are answered; none: learn all rows [a tenth of DATA]."),
         click.option("--start", type=click.Path(path_type=Path), help="Adapter to begin from, such as one that "
                      "learned other rows; the new one has its rank and projections."),
         answers_option,
         click.option("--resume", is_flag=True, help="Continue the run in the output folder, to the same bytes; start "
                      "again if it was killed before its first checkpoint."),
         allow_changed_option, sweep_options,
         policy_file_option, policy_options, config_option(), cls=ObjectiveCommand)
def train_command(model: Path, data: Path, folder: Path, held_out: str | None, policy_file: Path | None, as_json: bool,
                  **options: Any) -> None:
    """Train an adapter of MODEL with the rows of DATA.

    MODEL is a GGUF, a bundle, or a name that edgetune models lists. DATA is .jsonl, one row a line, or .json, .csv,
    .tsv, .parquet; plain .txt; or - for lines from standard input. Files between commas, a folder, or a data set of the
    Hugging Face hub (hf:ORG/NAME:SPLIT) are read as one. Rows have one of three shapes, or known keys, such as those of
    Alpaca or ShareGPT:

    \b
      {"messages": [{"role": "user", "content": "..."}, ...]}
      {"prompt": "...", "completion": "..."}
      {"text": "..."}

    The loss counts answers only (every assistant turn, the completion), and all of a text. The output folder contains
    adapter.gguf for llama.cpp, run.json and metrics.jsonl. Ctrl-C, SIGTERM and a closed terminal save and exit with 75;
    --resume continues. Several numbers, as in --lr 1e-4,5e-4, make a run each, and a table. Exits with 3 if the adapter
    is worse than no training.
    """
    from ..formats.bundle import open_bundle
    from ..runs.train import train
    from ..training.callbacks import RunCallbacks
    governor = governor_of(policy_file, options)
    bundle = open_bundle(model)
    arguments = {"objective": take_objective(options, bundle.gguf), "start": options.pop("start"),
                 "answers": options.pop("answers"), "resume": options.pop("resume"),
                 "allow_changed": options.pop("allow_changed")}
    options = explicit(options)  # an adapter to begin from may decide others
    grid = take_grid(options)
    with stop_on_signals() as should_stop, train_progress(as_json) as progress:
        arguments["callbacks"] = RunCallbacks(progress.event, should_stop, governor, command=typed())
        if grid:
            from ..runs.sweep import BEST, sweep
            found = sweep(bundle, data, folder, held_out, grid=grid, **arguments, **options)
        else:
            result = train(bundle, data, folder, held_out, **arguments, **options)
    if not grid:
        finish(as_json, result, model)
    elif found.best and found.best.result:
        best = found.best.result
        show(as_json, {"out": str(folder), **found.to_json()}, sweep_table(found), *result_lines(best),
             *try_lines(best, model, folder / BEST))
        exit_if_worse(best)
    else:
        show(as_json, {"out": str(folder), **found.to_json()}, sweep_table(found))
        click.get_current_context().exit(1)


@command("resume", click.argument("folder", metavar="OUT", type=click.Path(path_type=Path)),
         click.option("--epochs", metavar="+N", help="Epochs to add to a finished run, with a new schedule of the "
                      "learning rate."),
         allow_changed_option, answers_option,
         training_options("epochs", defaults=False),
         config_options(*(spec.name for spec in fields(Policy)), of=Policy, defaults=False))
def resume_command(folder: Path, epochs: str | None, allow_changed: tuple[str, ...], answers: bool, as_json: bool,
                   **options: Any) -> None:
    """Continue the run in OUT, or a finished one.

    OUT knows its model, rows and options. A run that was stopped or killed ends with the bytes of one that was not; one
    that is finished needs --epochs +N. Named options hold from here on; those that change what is learned need
    --allow-changed too.
    """
    from ..machine.device import read_device
    from ..machine.governor import Governor
    from ..options import make_options
    from ..runs.train import resume
    from ..training.callbacks import RunCallbacks
    from ..training.origin import read_origin
    origin = read_origin(folder)
    given = {name: value for name, value in options.items() if value is not None}
    policy = {**origin.policy, **{spec.name: given.pop(spec.name) for spec in fields(Policy) if spec.name in given}}
    governor = Governor(make_options(Policy, policy).check(), read_device().profile)
    with stop_on_signals() as should_stop, train_progress(as_json) as progress:
        result = resume(folder, more=more_epochs(epochs), allow_changed=allow_changed, answers=answers,
                        callbacks=RunCallbacks(progress.event, should_stop, governor, command=typed()), **given)
    finish(as_json, result, Path(origin.model))


def more_epochs(text: str | None) -> float:
    if text is None:
        return 0.0
    number = re.fullmatch(r"\+(\d+(?:\.\d+)?)", text)
    if number is None:
        raise UsageError(f"epochs is {text!r}", "give the number to add, such as --epochs +4")
    return float(number[1])


def typed() -> list[str]:
    return ["edgetune", *sys.argv[1:]]


def finish(as_json: bool, result: Result, model: Path) -> None:
    """Shows the result of a run. The exit code is WORSE if it is worse than no training."""
    show(as_json, {"out": str(result.folder), **result.record}, *result_lines(result),
         *try_lines(result, model, result.folder))
    exit_if_worse(result)


def result_lines(result: Result) -> list[Any]:
    """Shows a run's verdict in a line, three questions with answers, the verdict whole, and the cost."""
    from ..console import duration, pair_lines
    most = max(result.record["peak_rss_mib"], result.record.get("peak_children_mib", 0.0))
    peak = f"{size_text(most * 2**20)}{' with the answers' if result.pairs else ''}"
    structured = result.exact_structured
    return [verdict_line(result), *pair_lines(result.pairs, out), "", result.verdict,
            *([f"exact answers that are held to their schema: {structured:.0%}"]
              if structured not in (None, result.exact_after) else []),
            f"{result.steps} steps in {duration(result.seconds)}, peak memory {peak}"]


def verdict_line(result: Result) -> Text:
    """The verdict on a run in a line, with its time."""
    from ..console import duration, headline
    return headline([*result.headline, duration(result.seconds)], COLOURS[result.kind])


def try_lines(result: Result, model: Path, folder: Path) -> list[str]:
    """Names the adapter's folder and, unless it is worse than no training, the shortest command to answer with it."""
    from ..console import Copied
    from ..formats.named import name_of
    if result.is_worse:
        return [f"adapter in {folder}"]
    if result.record.get("objective", {}).get("name") == "embed":
        merge = f"edgetune adapters merge {shell_word(name_of(model))} {shell_word(folder)} -o NEW.gguf"
        return [Copied(f"adapter in {folder}; write a model with it: {merge}")]
    ask = f"edgetune chat {shell_word(name_of(model))} --adapter {shell_word(folder)}"
    return [Copied(f"adapter in {folder}; try: {ask}")]


def exit_if_worse(result: Result) -> None:
    if result.is_worse:
        click.get_current_context().exit(WORSE)
