"""Rules instead of labels: what a grader that knows only a schema teaches on Snips, and whether it is cheated.

    python tests/proofs/rules.py [--shared ../shared] [--seeds 0,1,2] [--only grpo rest ...] [--steps 40]
                                 [--out rules.jsonl]

A model learns 50 rows by the default recipe. From that adapter each method learns for as many steps: grpo, rloo and
rest the bare prompts of 600 others, with a grader; "sft continued" the 50 again. The grader "form" knows the intents
and which slot names belong to each, no answer: a tenth for JSON with an intent and slots, two for an intent of the
list, three for names that belong to it, four for the share of values that stand in the prompt. An answer can win by
leaving slots out, for what is not said cannot be wrong; so there is a second grader, "covered", which gives half of
these four tenths for how much of the prompt the values are of, where half of its words are enough. 200 rows of
snips_dev judge, by the likeliest answers.

Cheating is looked for in the same answers: rewards by both graders, answers without slots, with fewer than the truth,
slots in the mean, and how many intents are used. A sign test compares each method with sft continued, row by row over
all seeds. Results are added to --out, and what it has already is not measured again, so that the proof can run in
pieces.

Exits with 1 unless the best of the methods has more exact answers than sft continued, and more intents right, each with
p below 0.05.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

from peers.snips import SYSTEM
from proofs.compared import (
    CONTINUED,
    SHARED,
    START,
    Result,
    Row,
    against,
    arguments,
    by_variant,
    edgetune,
    mean_interval,
    prove,
    unbeaten,
    written,
)
from proofs.sums import learned

from edgetune.evaluation.judge import parse_json, same

FEW = 50
PROMPTS = 600
ASKED = 200
MOST_TOKENS = 64
LR = "1e-4"
DRAWN: list[object] = ["--num-generations", 4, "--max-completion-length", MOST_TOKENS, "--lr", LR]
GRPO = ["--method", "grpo", "--loss-type", "dr_grpo", "--scale-rewards", "none", *DRAWN]
REST = ["--method", "rest", "--steps-per-generation", 20, *DRAWN]
METHODS: dict[str, tuple[str, list[object]]] = {  # (grader, options)
    CONTINUED: ("", []),
    "grpo": ("form", GRPO),
    "rloo": ("form", ["--method", "rloo", *DRAWN]),
    "rest": ("form", REST),
    "grpo, covered": ("covered", GRPO),
    "rest, covered": ("covered", REST)}
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


def graders(rows: Sequence[Row]) -> dict[str, Row]:
    """By name. rows: those whose intents and slot names are known."""
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
        "names": {"type": "json_schema", "name": "names",
                  "schema": answer | {"anyOf": branches}},
        "values": {"type": "grounded", "name": "values", "ignore": ["intent"]}}
    covered = {"type": "python", "name": "covered", "source": COVERED}
    return {"form": {"type": "multi", "name": "form", "graders": parts,
                     "calculate_output": "(json + 2 * intent + 3 * names + 4 * json * values) / 10"},
            "covered": {"type": "multi", "name": "covered", "graders": parts | {"covered": covered},
                        "calculate_output": "(json + 2 * intent + 3 * names + 2 * json * (values + covered)) / 10"}}


def measured(model: Path, folder: Path, variant: str, seed: int, args: argparse.Namespace) -> Result:
    """The start is trained where it is not there yet."""
    data = args.shared / "data"
    rows = [json.loads(line) for line in (data / "snips_train.jsonl").read_text(encoding="utf-8").splitlines()]
    few = written(folder / "few.jsonl", rows[:FEW])
    prompts = written(folder / "prompts.jsonl", [{"prompt": row["prompt"]} for row in rows[FEW:][:PROMPTS]])
    for name, grader in graders(rows).items():
        (folder / f"{name}.json").write_text(json.dumps(grader), encoding="utf-8")
    held = (data / "snips_dev.jsonl").read_text(encoding="utf-8").splitlines()
    always = ["--system", SYSTEM, "--no-answers", "--seed", seed]
    start = folder / f"start-{seed}"
    seconds = learned(model, few, start, *always)
    out = start
    if variant != START:
        grader, options = METHODS[variant]
        out = folder / f"{variant.replace(', ', '-').replace(' ', '-')}-{args.steps}-{seed}"
        if grader:
            options = [*options, "--grader", folder / f"{grader}.json"]
        seconds = learned(model, prompts if grader else few, out, "--start", start, "--batch-size", 8, "--steps",
                          args.steps, "--eval", "none", *options, *always)
    return {"variant": variant, "seed": seed, "steps": args.steps if variant != START else 0, "lr": LR,
            "seconds": seconds, "learned": rewards_while_learning(out / "metrics.jsonl"),
            **judged(model, folder, out, [json.loads(line) for line in held[:ASKED]])}


def rewards_while_learning(path: Path) -> list[float]:
    """The mean reward of each step's answers; empty where there are none."""
    events = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    return [event["metrics"]["reward"] for event in events if event["event"] == "step" and
            "reward" in event.get("metrics", {})]


def answered(model: Path, folder: Path, adapter: Path, rows: list[Row]) -> tuple[list[str], list[float]]:
    """(the likeliest answer to each row, what form.json gives it)"""
    asked = written(folder / "held.jsonl", [{"prompt": row["prompt"]} for row in rows])
    saved = folder / f"{adapter.name}.answers"
    saved.unlink(missing_ok=True)
    by_form = edgetune("grade", folder / "form.json", asked, "--model", model, "--adapter", adapter, "--system", SYSTEM,
                       "--max-tokens", MOST_TOKENS, "--save", saved, "--json")
    return [json.loads(line)["text"] for line in saved.read_text(encoding="utf-8").splitlines()], by_form["scores"]


def judged(model: Path, folder: Path, adapter: Path, rows: list[Row]) -> Result:
    """What the likeliest answers are, a value for each row."""
    texts, by_form = answered(model, folder, adapter, rows)
    graded = written(folder / f"{adapter.name}.graded", [{"prompt": row["prompt"], "completion": text or " "}
                                                          for row, text in zip(rows, texts, strict=True)])
    by_covered = edgetune("grade", folder / "covered.json", graded, "--json")
    wanted = [json.loads(row["completion"]) for row in rows]
    given = [parts_of(text) for text in texts]
    return {"exact": [int(same(row["completion"], text)) for row, text in zip(rows, texts, strict=True)],
            "intent": [int(intent == right["intent"]) for (intent, _), right in zip(given, wanted, strict=True)],
            "form": by_form, "covered": by_covered["scores"], "intents": [intent for intent, _ in given],
            "slots": [slots for _, slots in given], "true_slots": [len(right["slots"]) for right in wanted]}


def parts_of(text: str) -> tuple[str | None, int | None]:
    """(intent, number of slots) of an answer; None for what it has not."""
    answer = parse_json(text)
    if not isinstance(answer, dict):
        return None, None
    intent = answer.get("intent")
    slots = answer.get("slots")
    return intent if isinstance(intent, str) else None, len(slots) if isinstance(slots, dict) else None


# ---- what the results say ----


def of_rows(runs: Sequence[Result], name: str) -> list[float]:
    return [value for run in runs for value in run[name]]


def told(result: Result) -> str:
    return (f"exact {share(result['exact'])}, intent {share(result['intent'])}, reward "
            f"{statistics.fmean(result['form']):.3f}, {result['seconds']:.0f} s")


def show(results: Sequence[Result]) -> None:
    found = by_variant(results)
    print("\n| learned | seeds | steps | exact | against sft continued | intent | against sft continued | s |\n"
          + "|---" * 8 + "|")
    for name, runs in found.items():
        told = [against(runs, found[CONTINUED], what) if name != CONTINUED and CONTINUED in found else ""
                for what in ("exact", "intent")]
        print(f"| {name} | {len(runs)} | {runs[0]['steps']} | {mean_interval(of_rows(runs, 'exact'))} | {told[0]} | "
              f"{mean_interval(of_rows(runs, 'intent'))} | {told[1]} | {max(run['seconds'] for run in runs):.0f} |")
    print("\n| learned | reward while learning, first and last 5 steps | form | covered | no JSON | no slots | fewer "
          "slots | more slots | slots | intents |\n" + "|---" * 10 + "|")
    for name, runs in found.items():
        pairs = [pair for run in runs for pair in zip(run["slots"], run["true_slots"], strict=True)]
        known = [(given, right) for given, right in pairs if given is not None]
        rising = [statistics.fmean(part) for part in zip(*(run["learned"] for run in runs), strict=True)]
        rise = f"{statistics.fmean(rising[:5]):.2f} to {statistics.fmean(rising[-5:]):.2f}" if rising else ""
        used = statistics.fmean(len({intent for intent in run["intents"] if intent}) for run in runs)
        print(f"| {name} | {rise} | {statistics.fmean(of_rows(runs, 'form')):.3f} | "
              f"{statistics.fmean(of_rows(runs, 'covered')):.3f} | {1 - len(known) / len(pairs):.1%} | "
              f"{share(given == 0 for given, _ in known)} | {share(given < right for given, right in known)} | "
              f"{share(given > right for given, right in known)} | "
              f"{statistics.fmean([given for given, _ in known] or [0]):.2f} of "
              f"{statistics.fmean(right for _, right in pairs):.2f} | {used:.1f} |")


def share(those: Iterable[float]) -> str:
    found = list(those)
    return f"{statistics.fmean(found):.1%}" if found else ""


def missed(results: Sequence[Result]) -> list[str]:
    """What does not hold."""
    found = by_variant(results)
    methods = {name: runs for name, runs in found.items() if name not in (START, CONTINUED)}
    if CONTINUED not in found or not methods:
        return ["sft continued and a method are not both measured yet"]
    best = max(methods, key=lambda name: statistics.fmean(of_rows(methods[name], "exact")))
    return [*unbeaten(best, CONTINUED, found, "exact"), *unbeaten(best, CONTINUED, found, "intent")]


def main() -> None:
    parser = arguments(__doc__, [*METHODS], [*METHODS], "rules.jsonl")
    parser.add_argument("--shared", type=Path, default=SHARED)
    parser.add_argument("--steps", type=int, default=40)
    args = parser.parse_args()
    prove(args, args.steps, measured, told, show, missed)


if __name__ == "__main__":
    main()
