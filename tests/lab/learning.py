"""Comparisons by one plan: for these data sets, ways to train and seeds, train by the command line, ask held-out rows
and compare. `comparisons.py` has the table.

A way is a training with its own options, of the rows of a task or of rows that it makes of them, from the base or from
an adapter that learned the first rows (the start). Each adapter answers the same held-out rows by llama.cpp; one that
llama.cpp does not apply is merged before. Results are added to --out, and what it holds already is not measured again.
--rates tries them for each way on other rows with another seed, and takes the one with the least loss.
"""

import argparse
import json
import statistics
import subprocess
import sys
import time
from argparse import Namespace
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property, partial
from pathlib import Path
from typing import Any

from json_lines import write_lines
from lab.common import (
    Result,
    Row,
    add,
    add_usual,
    against,
    answered,
    edgetune,
    end_with,
    folder_of,
    forgotten,
    grouped,
    joined,
    mean_interval,
    measure_missing,
    served,
    table,
)

from edgetune.adapters.base import MERGED
from edgetune.adapters.store import FILE
from edgetune.errors import WORSE
from edgetune.evaluation.judge import is_json, same

START = "start"
TUNING_SEED = 100
TUNING_ROWS = 150
MAX_LENGTH = 512


@dataclass(frozen=True)
class Task:
    """train, held: rows with prompt and completion, given --shared and a seed. sizes: how many are learned. options: of
    every command. start: options of the training from which ways begin that learn `further` rows. drawn: answers to a
    question at temperature 1, beside the likeliest. graders: by name.
    """

    train: Callable[[Path, int], list[Row]]
    held: Callable[[Path, int], list[Row]]
    system: str = ""
    sizes: Sequence[int] = (60,)
    asked: int = 100
    right: Callable[[str, str], bool] = same
    model: str = ""
    start: Sequence[object] = ()
    further: int = 0
    drawn: int = 0
    max_tokens: int = 64
    graders: Callable[[list[Row]], dict[str, Row]] = lambda rows: {}  # noqa: ARG005


@dataclass(frozen=True)
class Setting:
    """A task with a size and a seed. folder: for adapters and answers that later pieces use again."""

    args: Namespace
    name: str
    task: Task
    size: int
    seed: int

    @property
    def folder(self) -> Path:
        return folder_of(self.args)

    @property
    def model(self) -> Path | str:
        return self.task.model or self.args.model

    @cached_property
    def known(self) -> list[Row]:
        return self.task.train(self.args.shared, self.seed)

    @property
    def rows(self) -> list[Row]:
        return self.known[:self.size]

    @property
    def further(self) -> list[Row]:
        return self.known[self.size:][:self.task.further]

    @cached_property
    def held(self) -> list[Row]:
        return self.task.held(self.args.shared, self.seed)[:self.args.asked or self.task.asked]

    @property
    def system(self) -> list[object]:
        return ["--system", self.task.system] if self.task.system else []

    @property
    def start(self) -> Path:
        out = self.folder / f"{self.name}-{self.size}-start-{self.seed}"
        learned(self, self.rows, out, *self.task.start)
        return out

    def own(self, samples: int) -> list[list[str]]:
        """The start's own answers to each of the further rows."""
        saved = self.folder / f"{self.name}-own-{samples}-{self.seed}.json"
        if not saved.exists():
            saved.write_text(json.dumps(answers_of(self, self.start, self.further, samples)))
        texts = json.loads(saved.read_text())
        return [texts[i:i + samples] for i in range(0, len(texts), samples)]


@dataclass(frozen=True)
class Way:
    """options: of the training, or None if the start itself is asked. learns: the rows [those of the task]. from_start:
    begins from the start. grader: a name of the task's, or "". answers: of a baseline that trains nothing, given the
    rows and the held-out ones. knows_answers: whether it learns right answers to further rows.
    """

    options: Sequence[object] | None = ()
    learns: Callable[[Setting], list[Row]] = lambda setting: setting.rows
    from_start: bool = False
    grader: str = ""
    answers: Callable[[list[Row], list[Row]], list[str]] | None = None
    knows_answers: bool = False


@dataclass(frozen=True)
class Comparison:
    """ways: given the options, the name of a task and a size. measures: what is measured of an adapter beside its
    answers. targets: what must hold, of the results; each sentence says whether it does. options: of the program.
    """

    tasks: Mapping[str, Task]
    ways: Callable[[Namespace, str, int], dict[str, Way]]
    targets: Callable[[Sequence[Result], Namespace], dict[str, bool]] = lambda results, args: {}  # noqa: ARG005
    baseline: str = ""
    measures: Sequence[Callable[[Setting, Path], Result]] = ()
    only: Sequence[str] = ()
    chosen: Sequence[str] = ()
    options: Mapping[str, Any] = field(default_factory=dict)


# ---- one training ----------------------------------------------------------------------------------------------------


def learned(setting: Setting, rows: list[Row], out: Path, *options: object) -> Row:
    """Trains unless the folder is done, and goes on where it stopped; what run.json says, with the seconds of it
    all.
    """
    record = out / "run.json"
    began = time.monotonic()
    if not record.exists() or json.loads(record.read_text(encoding="utf-8"))["status"] != "done":
        words = ["train", setting.model, write_lines(out.with_suffix(".rows"), rows), "-o", out, "--no-govern",
                 "--no-answers", "--seed", setting.seed, *setting.system, *options,
                 *(["--resume"] if record.exists() else []), "--json"]
        done = subprocess.run([sys.executable, "-m", "edgetune", *map(str, words)], capture_output=True, text=True)
        if done.returncode not in (0, WORSE) or not record.is_file():
            sys.exit(f"{words}: {done.stdout}{done.stderr}")
        out.with_suffix(".seconds").write_text(f"{time.monotonic() - began:.1f}")
    return {**json.loads(record.read_text()), "seconds": float(out.with_suffix(".seconds").read_text())}


def answers_of(setting: Setting, adapter: Path, rows: list[Row], samples: int) -> list[str]:
    """Answers drawn at temperature 1, `samples` to a row, by edgetune's own engine."""
    return answered(Path(setting.model), adapter.with_suffix(".answers"), adapter, rows, setting.task.max_tokens,
                    *setting.system, "--samples", samples, "--temperature", 1, "--seed", setting.seed)


def ask(setting: Setting, adapter: Path) -> Result:
    """The loss of the held-out rows' answers and, of each, whether the likeliest answer is right."""
    from edgetune.data.dataset import load_rows
    from edgetune.evaluation.served import exact_match, served_loss
    from edgetune.serving.classifier import Classifier
    task = setting.task
    wanted = [row.get("completion") or row["chosen"] for row in setting.held]
    if task.model == "minilm":
        with Classifier("minilm", adapter) as encoder:
            said = [found.label for found in encoder.classify([row["prompt"] for row in setting.held])]
        return {"right": [task.right(*pair) for pair in zip(wanted, said, strict=True)]}
    model, applied = served_with(setting, adapter)
    rows = [{"prompt": row["prompt"], "completion": answer} for row, answer in zip(setting.held, wanted, strict=True)]
    with served(model, applied) as opened:
        data = load_rows(rows, opened.tokenizer, max_length=MAX_LENGTH, system=task.system)
        found = exact_match(opened, data, system=task.system)
        result: Result = {"loss": served_loss(opened, data)[0],
                          "right": [task.right(one.expected, one.answer) for one in found]}
        if all(is_json(one.expected) for one in found):
            result["intent"] = [intent(one.expected) == intent(one.answer) for one in found]
    if task.drawn:
        texts = answers_of(setting, adapter, setting.held, task.drawn)
        rights = [task.right(wanted[i // task.drawn], text) for i, text in enumerate(texts)]
        result["drawn"] = [sum(rights[i:i + task.drawn]) / task.drawn for i in range(0, len(rights), task.drawn)]
    return result


def served_with(setting: Setting, adapter: Path) -> tuple[Path, Path | None]:
    """(model, adapter) for llama.cpp: merged if it does not apply such adapters."""
    if edgetune("info", adapter, "--json")["answered_by"] != MERGED:
        return Path(setting.model), adapter
    merged = adapter.with_suffix(".gguf")
    if not merged.exists():
        edgetune("merge", setting.model, adapter, "-o", merged, "--json")
    return merged, None


def intent(answer: str) -> object:
    """What the first key of a JSON object says, the intent of Snips; the answer itself if it is none."""
    try:
        found = json.loads(answer)
    except ValueError:
        return answer
    return next(iter(found.values()), None) if isinstance(found, dict) else found


def on_wiki(setting: Setting, adapter: Path) -> Result:
    """What the adapter changes on other text."""
    return forgotten(Path(setting.model), adapter, setting.args.shared / "data")


# ---- all of them -----------------------------------------------------------------------------------------------------


def measured(comparison: Comparison, args: Namespace, task: str, rows: int, way: str, seed: int) -> Result:
    setting = Setting(args, task, comparison.tasks[task], rows, seed)
    how = comparison.ways(args, task, rows)[way]
    if how.answers:
        said = how.answers(setting.rows, setting.held)
        return {"right": [setting.task.right(row["completion"], text)
                          for row, text in zip(setting.held, said, strict=True)]}
    if how.options is None:
        return ask(setting, setting.start)
    out, record = trained(setting, how, way)
    return {name: record.get(name) for name in ("seconds", "steps", "parameters", "peak_rss_mib", "rate")} | {
        "bytes": (out / FILE).stat().st_size, "verdict": (record.get("verdict") or {}).get("sentence", ""),
        **ask(setting, out), **{key: value for measure in comparison.measures
                                for key, value in measure(setting, out).items()}}


def trained(setting: Setting, how: Way, way: str) -> tuple[Path, Row]:
    args = setting.args
    name = f"{setting.name}-{setting.size}-{way}".replace(" ", "-").replace(",", "")
    options = [*(how.options or ())]
    if how.from_start:
        options += ["--start", setting.start, "--batch-size", 8, "--steps", args.steps, "--eval", "none"]
    if how.grader:
        grader = setting.folder / f"{name}.grader.json"
        grader.write_text(json.dumps(setting.task.graders(setting.known)[how.grader]), encoding="utf-8")
        options += ["--grader", grader, "--max-completion-length", setting.task.max_tokens]
    rows = how.learns(setting)
    if rate := args.lr or best_rate(setting, rows, name, options):
        name, options = f"{name}-{rate:g}", [*options, "--lr", rate]
    out = setting.folder / f"{name}-{setting.seed}"
    return out, {**learned(setting, rows, out, *options), "rate": rate}


def best_rate(setting: Setting, rows: list[Row], name: str, options: list[object]) -> float:
    """That of --rates with the least loss on the last rows of the task; 0 without any."""
    if not setting.args.rates:
        return 0
    other = Setting(setting.args, setting.name, setting.task, setting.size, TUNING_SEED)
    held = write_lines(setting.folder / f"{setting.name}.tuning.rows", setting.known[-TUNING_ROWS:])

    def loss(rate: float) -> float:
        out = setting.folder / f"{name}-{rate:g}-tuning"
        return float(learned(other, rows, out, *options, "--lr", rate, "--eval", held)["held_out"]["loss_after"])

    return min(setting.args.rates, key=loss)


def add_options(comparison: Comparison, name: str, parser: argparse.ArgumentParser) -> None:
    add_usual(parser, f"{name}.jsonl", comparison.only, comparison.chosen, seeds=[0, 1, 2], asked=0, steps=0, lr=0.0)
    names = [] if comparison.only else ["--only"]
    parser.add_argument("--tasks", *names, nargs="+", choices=comparison.tasks, default=[*comparison.tasks])
    add(parser, **{"rows": [0], "rates": [0.0], **comparison.options})


def compare(comparison: Comparison, args: Namespace) -> None:
    args.rates = [rate for rate in args.rates if rate]
    args.rows = [rows for rows in args.rows if rows]
    cases = [{"task": task, "rows": size, "way": way, "seed": seed} for task in args.tasks
             for size in (args.rows or comparison.tasks[task].sizes) for seed in args.seeds
             for way in comparison.ways(args, task, size)]
    results = measure_missing(args, cases, partial(measured, comparison, args), told)
    show(comparison, results)
    end_with(comparison.targets(results, args))


def told(result: Result) -> str:
    return (f"{result['task']}, {result['rows']} rows, {result['way']}, seed {result['seed']}: "
            f"{sum(result['right'])} of {len(result['right'])} right, {result.get('seconds') or 0:.0f} s")


def show(comparison: Comparison, results: Sequence[Result]) -> None:
    for (task, size), found in grouped(results, "task", "rows").items():
        by_way = grouped(found, "way")
        lists = [name for name in ("right", "intent", "drawn") if found[0].get(name)]
        numbers = [name for name in found[-1] if isinstance(found[-1][name], int | float)
                   and name not in ("rows", "seed")]
        heads = [f"{task}, {size} rows", "seeds", *(head for name in lists for head in (name, f"{name}, against"
                                                                                            f" {comparison.baseline}"))]
        table([*heads, *numbers], (line(runs, by_way.get(comparison.baseline), way, lists, numbers)
                                   for way, runs in by_way.items()))


def line(runs: Sequence[Result], baseline: Sequence[Result] | None, way: str, lists: Sequence[str],
         numbers: Sequence[str]) -> Iterator[object]:
    """The cells of a way."""
    yield way
    yield len(runs)
    for name in lists:
        yield mean_interval(joined(runs, name)) if runs[0].get(name) else ""
        yield against(runs, baseline, name) if baseline and baseline is not runs and runs[0].get(name) else ""
    for name in numbers:
        values = [run[name] for run in runs if run.get(name) is not None]
        yield f"{statistics.fmean(values):.4g}" if values else ""
