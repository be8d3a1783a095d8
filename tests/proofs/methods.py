"""Training methods compared: each learns from the same start, for as many steps, and answers the same questions.

    python tests/proofs/methods.py sums|snips [--seeds 0,1,2] [--only grpo nlft ...]
                                   [--steps N] [--lr RATE] [--out FILE]

A model learns the first rows of a task: the start. From that adapter each method of METHODS learns further rows, in
the form that it needs: their right answers, their bare questions with a grader, or the start's own answers to them,
with a judgment or beside the right answer. "sft continued" learns the first rows again, "labels" the further ones with
their right answers, which is what a teacher would have given. Other rows are held out: the likeliest answer to each,
and of sums four drawn at temperature 1.

A sign test compares each method with sft continued, question by question over all seeds. Results are added to --out,
and what it already holds is not measured again, so that the proof can run in pieces. Snips needs ../shared.

Exits with 1 unless the best method that gets no right answers beats sft continued, with p below 0.05.
"""

import argparse
import json
import random
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cached_property, partial
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

from json_lines import read_lines, write_lines
from peers.snips import SYSTEM
from proofs.compared import (
    CONTINUED,
    SHARED,
    START,
    Result,
    Row,
    against,
    answered,
    arguments,
    by_variant,
    edgetune,
    end,
    folder_of,
    mean_interval,
    measure_missing,
    unbeaten,
)

from edgetune.evaluation.judge import same

LABELS = "labels"
MOST_TOKENS = 64  # of an answer to a question of Snips
ENOUGH = 0.5  # of a prompt's words, in values; the right answers have 0.52 in the mean
COVERED = f"""
def grade(sample, item):
    answer = sample["output_json"]
    slots = answer.get("slots") if isinstance(answer, dict) else None
    if not isinstance(slots, dict):
        return 0.0
    said = {{word for value in slots.values() for word in str(value).lower().split()}}
    words = item["prompt"].lower().split()
    return min(1.0, sum(word in said for word in words) / len(words) / {ENOUGH})
"""


@dataclass(frozen=True)
class Task:
    """rows: of a seed, with prompt and completion: `first` ones, `further` ones, then those held out. options: of every
    command that answers or trains. start: of the start's training. drawn: answers to a question at temperature 1.
    """

    rows: Callable[[int], list[Row]]
    first: int
    further: int
    held_out: int
    steps: int
    max_tokens: int
    start: Sequence[object]
    options: Sequence[object] = ()
    drawn: int = 0
    graders: dict[str, Row] = field(default_factory=dict)


def sums(seed: int) -> list[Row]:
    numbers = [(a, b) for a in range(2, 50) for b in range(2, 50)]
    random.Random(seed).shuffle(numbers)
    return [{"prompt": f"What is {a} + {b}? Answer with the number only.", "completion": str(a + b)}
            for a, b in numbers]


def snips(shared: Path, _seed: int) -> list[Row]:
    return read_lines(shared / "data" / "snips_train.jsonl")


def graders(rows: Sequence[Row]) -> dict[str, Row]:
    """Graders that know the schema and no answer. rows: those whose intents and slot names are known.

    "form": a tenth for JSON with an intent and slots, two for an intent of the list, three for names that belong to it,
    four for the share of values that stand in the prompt. An answer can win by leaving slots out, so "covered" gives
    half of these four tenths for how much of the prompt the values are of.
    """
    names: dict[str, set[str]] = {}
    for row in rows:
        answer = json.loads(row["completion"])
        names.setdefault(answer["intent"], set()).update(answer["slots"])
    branches = [{"properties": {"intent": {"const": intent},
                                "slots": {"type": "object", "properties": {name: {} for name in sorted(slots)},
                                          "additionalProperties": False}}} for intent, slots in sorted(names.items())]
    answer = {"type": "object", "required": ["intent", "slots"], "properties": {"slots": {"type": "object"}}}
    parts: dict[str, Row] = {
        "json": {"type": "json_schema", "name": "json", "schema": answer},
        "intent": {"type": "json_schema", "name": "intent",
                   "schema": answer | {"properties": {"intent": {"enum": sorted(names)}}}},
        "names": {"type": "json_schema", "name": "names", "schema": answer | {"anyOf": branches}},
        "values": {"type": "grounded", "name": "values", "ignore": ["intent"]}}
    covered = {"type": "python", "name": "covered", "source": COVERED}
    return {"form": {"type": "multi", "name": "form", "graders": parts,
                     "calculate_output": "(json + 2 * intent + 3 * names + 4 * json * values) / 10"},
            "covered": {"type": "multi", "name": "covered", "graders": parts | {"covered": covered},
                        "calculate_output": "(json + 2 * intent + 3 * names + 2 * json * (values + covered)) / 10"}}


def tasks(shared: Path) -> dict[str, Task]:
    return {
        "sums": Task(sums, 60, 600, 100, steps=60, max_tokens=12, start=["--epochs", 4, "--eval", "none"], drawn=4,
                     graders={"sum": {"type": "numeric", "name": "sum", "reference": "{{ item.completion }}"}}),
        "snips": Task(partial(snips, shared), 50, 600, 300, steps=40, max_tokens=MOST_TOKENS, start=[],
                      options=["--system", SYSTEM])}


# ---- what a method learns ----


@dataclass(frozen=True)
class Setting:
    """A task with a seed. folder: for adapters and answers that later pieces of the proof use again."""

    model: Path
    folder: Path
    task: Task
    seed: int

    @cached_property
    def rows(self) -> list[Row]:
        return self.task.rows(self.seed)

    @property
    def first(self) -> list[Row]:
        return self.rows[:self.task.first]

    @property
    def further(self) -> list[Row]:
        return self.rows[self.task.first:][:self.task.further]

    @property
    def held_out(self) -> list[Row]:
        return self.rows[self.task.first + self.task.further:][:self.task.held_out]

    @property
    def start(self) -> Path:
        return self.folder / f"start-{self.seed}"

    def own(self, samples: int) -> list[list[str]]:
        """The start's own answers to each of the further rows."""
        saved = self.folder / f"own-{samples}-{self.seed}.answers"
        if not saved.exists():
            answered(self.model, saved, self.start, self.further, self.task.max_tokens, *self.task.options, "--samples",
                     samples, "--temperature", 1, "--seed", self.seed)
        texts = texts_in(saved)
        return [texts[i:i + samples] for i in range(0, len(texts), samples)]


def bare(setting: Setting) -> list[Row]:
    """The questions; a grader that knows the right answers reads them in "completion"."""
    return setting.further if setting.task.drawn else [{"prompt": row["prompt"]} for row in setting.further]


def pairs(setting: Setting) -> list[Row]:
    """The right answer, and the first wrong one of four of the start's own."""
    wrong = [next((text for text in texts if text.strip() and not same(row["completion"], text)), None)
             for row, texts in zip(setting.further, setting.own(4), strict=True)]
    return [{"prompt": row["prompt"], "chosen": row["completion"], "rejected": text}
            for row, text in zip(setting.further, wrong, strict=True) if text]


def judged(setting: Setting) -> list[Row]:
    """One answer of the start's own to each question; of a wrong one a judgment says what is right."""
    made = []
    for row, (text,) in zip(setting.further, setting.own(1), strict=True):
        right = same(row["completion"], text)
        judgment = None if right else f"The answer {text} is wrong. The right answer is {row['completion']}."
        made += [{"prompt": row["prompt"], "completion": text, "reference": row["completion"],
                  "judgment": judgment}] if text.strip() else []
    return made


def verified(setting: Setting) -> list[Row]:
    """Those of the start's own answers that are right."""
    return [{"prompt": row["prompt"], "completion": row["completion"]} for row in judged(setting)
            if row["judgment"] is None]


def first(setting: Setting) -> list[Row]:
    return setting.first


def further(setting: Setting) -> list[Row]:
    return setting.further


@dataclass(frozen=True)
class Method:
    """What is learned, and how. is_graded: --grader is added."""

    learns: Callable[[Setting], list[Row]]
    options: Sequence[object] = ()
    is_graded: bool = False
    knows_answers: bool = False


METHODS = {
    CONTINUED: Method(first),
    LABELS: Method(further, knows_answers=True),
    "grpo": Method(bare, ["--method", "grpo", "--num-generations", 8], is_graded=True),
    "rloo": Method(bare, ["--method", "rloo", "--num-generations", 8], is_graded=True),
    "p3o": Method(bare, ["--method", "p3o"], is_graded=True),
    "rest": Method(bare, ["--method", "rest", "--num-generations", 8, "--steps-per-generation", 20], is_graded=True),
    "verified": Method(verified),
    "nlft": Method(judged, ["--method", "nlft", "--lr", "3e-4"], knows_answers=True),
    "dpo": Method(pairs, ["--method", "dpo"], knows_answers=True),
    "dpo + sft": Method(pairs, ["--method", "dpo", "--sft-weight", 0.2], knows_answers=True),
    "orpo": Method(pairs, ["--method", "orpo"], knows_answers=True)}
DEFAULT = (CONTINUED, LABELS, "grpo", "rest")


# ---- commands ----


def texts_in(saved: Path) -> list[str]:
    return [row["text"].strip() for row in read_lines(saved)]


def learned(setting: Setting, rows: list[Row], out: Path, *options: object) -> float:
    """Seconds of the training; a folder that is there is trained to its end, and not again."""
    record = out / "run.json"
    began = time.monotonic()
    if not record.exists() or json.loads(record.read_text(encoding="utf-8"))["status"] != "done":
        edgetune("train", setting.model, write_lines(out.with_suffix(".jsonl"), rows), "-o", out, "--no-govern",
                 "--no-answers", "--seed", setting.seed, *setting.task.options, *options,
                 *(["--resume"] if out.exists() else []), "--json")
    return time.monotonic() - began


def measured(task: Task, args: argparse.Namespace, variant: str, seed: int, steps: int) -> Result:
    """The start is trained where it is not there yet. steps: 0 of the start."""
    folder = folder_of(args)
    setting = Setting(args.model, folder, task, seed)
    out = setting.start
    seconds = learned(setting, setting.first, out, *task.start)
    if variant != START:
        method = METHODS[variant]
        out = folder / f"{variant.replace(' ', '-')}-{steps}-{args.grader}-{args.lr or 'auto'}-{seed}"
        options = [*method.options, *(["--lr", args.lr] if args.lr else [])]
        if method.is_graded:
            known = task.graders or graders(setting.rows)
            file = folder / f"{args.grader}.json"
            file.write_text(json.dumps(known.get(args.grader) or next(iter(known.values()))), encoding="utf-8")
            options += ["--grader", file, "--max-completion-length", task.max_tokens]
        seconds = learned(setting, method.learns(setting), out, "--start", setting.start, "--batch-size", 8, "--steps",
                          steps, "--eval", "none", *options)
    return {"seconds": seconds, **answers_of(setting, out)}


def answers_of(setting: Setting, adapter: Path) -> Result:
    """A value for each held-out row: whether the likeliest answer is right, and the share of those drawn that are."""
    task = setting.task
    saved = setting.folder / f"{adapter.name}.answers"
    wanted = [row["completion"] for row in setting.held_out]

    def right(samples: int, *options: object) -> list[float]:
        texts = texts_in(answered(setting.model, saved, adapter, setting.held_out, task.max_tokens, *task.options,
                                  "--samples", samples, *options))
        found = [same(wanted[i // samples], text) for i, text in enumerate(texts)]
        return [sum(found[i:i + samples]) / samples for i in range(0, len(found), samples)]

    drawn = right(task.drawn, "--temperature", 1, "--seed", setting.seed) if task.drawn else []
    return {"likeliest": right(1), "drawn": drawn}


# ---- what the results say ----


def told(result: Result) -> str:
    likeliest = f"{statistics.fmean(result['likeliest']):.1%} of the likeliest answers are right"
    drawn = f", {statistics.fmean(result['drawn']):.1%} of those drawn" if result["drawn"] else ""
    return f"{result['variant']}, seed {result['seed']}: {likeliest}{drawn}, {result['seconds']:.0f} s"


def show(results: Sequence[Result]) -> None:
    found = by_variant(results)
    print(f"\n| learned | seeds | steps | likeliest answer | against {CONTINUED} | drawn | against {CONTINUED} | s |\n"
          + "|---" * 8 + "|")
    for name, runs in found.items():
        cells = []
        for what in ("likeliest", "drawn"):
            values = [value for run in runs for value in run[what]]
            compared = against(runs, found[CONTINUED], what) if CONTINUED in found and name != CONTINUED else ""
            cells += [mean_interval(values), compared] if values else ["", ""]
        print(f"| {name} | {len(runs)} | {runs[0]['steps']} | {' | '.join(cells)} | "
              f"{max(run['seconds'] for run in runs):.0f} |")


def missed(results: Sequence[Result]) -> list[str]:
    """What does not hold."""
    found = by_variant(results)
    alone = [name for name in found if name in METHODS and name != CONTINUED and not METHODS[name].knows_answers]
    if CONTINUED not in found or not alone:
        return [f"{CONTINUED} and a method that gets no right answers are not both measured yet"]
    best = max(alone, key=lambda name: statistics.fmean(value for run in found[name] for value in run["likeliest"]))
    return unbeaten(best, CONTINUED, found, "likeliest")


def main() -> None:
    parser = arguments(__doc__, "methods.jsonl", METHODS, DEFAULT, seeds=True)
    parser.add_argument("task", choices=tasks(SHARED))
    parser.add_argument("--steps", type=int, help="of each method [60 of sums, 40 of snips]")
    parser.add_argument("--lr", help="of all methods [of each its own]")
    parser.add_argument("--grader", choices=["form", "covered"], default="form", help="of snips [form]")
    args = parser.parse_args()
    task = tasks(args.shared)[args.task]
    args.steps = args.steps or task.steps
    args.out = args.out.with_stem("-".join([args.out.stem, args.task, args.grader, *([args.lr] if args.lr else [])]))
    cases = [{"variant": variant, "seed": seed, "steps": args.steps if variant != START else 0}
             for seed in args.seeds for variant in (START, *args.only)]
    results = measure_missing(args, cases, partial(measured, task, args), told)
    results = [result for result in results if result["steps"] in (0, args.steps)]  # not those of other lengths
    show(results)
    end(missed(results))


if __name__ == "__main__":
    main()
