"""train and resume."""

from __future__ import annotations

import re
import sys
import time
from dataclasses import Field, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
from rich.text import Text

from ..errors import WORSE, UsageError, shell_word, size_text
from ..machine.policy import Policy
from ..options import kind_of
from ..training.config import LORA, train_options
from .app import (
    DATA,
    MODEL,
    command,
    config_options,
    explicit,
    flag_type,
    governor_of,
    out,
    policy_file_option,
    policy_options,
    show,
    step_progress,
    stop_on_signals,
    threads_option,
    train_progress,
    training_options,
)
from .configured import config_option
from .grouped import GroupedOption
from .names import GROUPS
from .objective import ObjectiveCommand, take_objective

if TYPE_CHECKING:
    from ..runs.result import Result
    from ..runs.sweep import Sweep


class Several(click.ParamType):  # type: ignore[type-arg]  # older versions of click are not generic
    """A value of this type, or several between commas, as a tuple."""

    def __init__(self, single: click.ParamType) -> None:  # type: ignore[type-arg]
        self.single = single
        self.name = f"{single.name},..."

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        if isinstance(value, str) and "," in value:
            return tuple(self.single.convert(part.strip(), param, ctx) for part in value.split(","))
        return self.single.convert(value, param, ctx)


def several(spec: Field[Any]) -> Any:
    """The click type of an option in a sweep: a number may have several values."""
    single = flag_type(spec)
    return Several(click.types.convert_type(single)) if kind_of(spec) in (int, float) else single


sweep_options = training_options(typed=several)


def take_grid(options: dict[str, Any]) -> dict[str, tuple[Any, ...]]:
    """The options of which several values are given; takes them out of `options`."""
    names = dict.fromkeys([*train_options(options.get("family", LORA)), *options])
    return {name: options.pop(name) for name in names if isinstance(options.get(name), tuple)}


def sweep_tables(found: Sweep) -> list[Any]:
    """A line a run, the best marked; then the means of runs that differ only in their seed."""
    from ..console import duration, table
    from ..runs.sweep import short
    names = list(found.tried[0].point)
    lines = []
    for tried in found.tried:
        values = [short(tried.point[name]) for name in names]
        r = tried.result
        if r is None:
            lines.append([*values, "not a number", "", "", "", ""])
            continue
        loss = "" if r.loss_after is None else f"{r.loss_after:.4f}"
        exact = "" if r.exact_after is None else f"{r.exact_after:.0%}"
        best = "best" if tried is found.best else ""
        lines.append([*values, loss, exact, str(r.steps), duration(r.seconds), best])
    columns = [*(name.replace("_", "-") for name in names), "held-out loss", "exact", "steps", "time", ""]
    runs = table("", columns, lines, tuple(range(len(columns) - 1)))
    means = [[*(short(value) for value in mean["options"].values()), str(mean["runs"]),
              spread(mean["loss"], ".4f"), spread(mean["exact"], ".0%")] for mean in found.means]
    if not means:
        return [runs]
    columns = [*(name.replace("_", "-") for name in found.means[0]["options"]), "seeds", "held-out loss: mean (range)",
               "exact: mean (range)"]
    return [runs, "", table("", columns, means, tuple(range(len(columns))))]


def spread(values: list[float] | None, form: str) -> str:
    """The mean, then the least and the most; empty for what was not measured."""
    if values is None:
        return ""
    mean, least, most = (f"{value:{form}}" for value in values)
    return f"{mean} ({least} to {most})"


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
        show(as_json, {"out": str(folder), **found.to_json()}, *sweep_tables(found), *result_lines(best),
             *try_lines(best, model, folder / BEST))
        exit_if_worse(best)
    else:
        show(as_json, {"out": str(folder), **found.to_json()}, *sweep_tables(found))
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
    found, lines = question_report(result)
    show(as_json, {"out": str(result.folder), **result.record, **found}, *result_lines(result), *lines,
         *try_lines(result, model, result.folder))
    exit_if_worse(result)


def question_report(result: Result) -> tuple[dict[str, Any], list[Any]]:
    """Returns what --json and the terminal show of the questions whose labels a run learned; nothing of another run."""
    if result.is_worse or not {"labels", "questions"} & {*(result.record.get("objective") or {})}:
        return {}, []
    from ..evaluation.question_scores import scores_in
    from .question_table import question_lines, scores_json
    scores = scores_in(result.folder)
    return scores_json(scores), question_lines(scores)


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
    from ..console import Copyable
    from ..formats.named import name_of
    if result.is_worse:
        return [f"adapter in {folder}"]
    if result.record.get("objective", {}).get("name") == "embed":
        merge = f"edgetune adapters merge {shell_word(name_of(model))} {shell_word(folder)} -o NEW.gguf"
        return [Copyable(f"adapter in {folder}; write a model with it: {merge}")]
    has_questions = (result.record.get("objective") or {}).get("questions")
    verb, text = ("decide", " TEXT") if has_questions and "decide" in GROUPS["Try"] else ("chat", "")
    ask = f"edgetune {verb} {shell_word(name_of(model))}{text} --adapter {shell_word(folder)}"
    return [Copyable(f"adapter in {folder}; try: {ask}")]


def exit_if_worse(result: Result) -> None:
    if result.is_worse:
        click.get_current_context().exit(WORSE)


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
    with step_progress(out, as_json) as fetching:
        demo.fetch_model(fetching.step)
    with stop_on_signals() as should_stop, train_progress(as_json) as progress:
        result = demo.run(folder or demo.free_folder(), threads=threads, seed=seed,
                          callbacks=RunCallbacks(progress.event, should_stop))
    seconds = time.monotonic() - began
    show(as_json, {"out": str(result.folder), **result.record, "seconds": seconds, "train_seconds": result.seconds},
         *demo_lines(result, seconds))


def demo_lines(result: Result, seconds: float) -> list[str | Text]:
    """The verdict in a line, three requests with answers before and after, and the next command."""
    from ..console import Copyable, duration, pair_lines
    peak = size_text(result.record["peak_rss_mib"] * 2**20)
    return [verdict_line(result), *pair_lines(result.pairs, out),
            f"\n{duration(seconds)} in all, peak memory {peak}",
            Copyable(f"talk to it: edgetune chat smollm2 --adapter {shell_word(result.folder)}")]


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
