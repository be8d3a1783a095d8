"""What a verifier of answers teaches: sums, from a model that has a third of them right.

    python tests/proofs/sums.py [--seeds 0,1,2] [--only grpo rest ...] [--steps 60] [--out sums.jsonl]

A seed chooses the sums. A model learns 60 of them with their results (sft, 4 passes). From that adapter each method
learns for as many steps: grpo, rest, and where --only names them rloo and p3o, the bare questions of 600 others, with
a numeric grader; "sft continued" the 60 again; "labels" the results of the 600, which is what a teacher would have
given. 100 other sums judge: pass@1 of four answers each at temperature 1, and the likeliest answer.

Intervals are of the questions: the four answers to one are not independent. A sign test compares each method with sft
continued, question by question over all seeds, by how many of the four answers are right, and by the likeliest one.
Results are added to --out, and what it has already is not measured again, so that the proof can run in pieces.

Exits with 1 unless the start has between 5 and 60 % by pass@1, and GRPO 10 points more within an hour.
"""

from __future__ import annotations

import argparse
import json
import random
import statistics
import sys
from collections.abc import Sequence
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

from proofs.compared import (
    CONTINUED,
    START,
    Result,
    Row,
    against,
    arguments,
    by_variant,
    edgetune,
    mean_interval,
    prove,
    written,
)

GRADER = {"type": "numeric", "name": "sum", "reference": "{{ item.answer }}"}
FEW = 60
PROMPTS = 600
ASKED = 100
SAMPLES = 4
MOST_TOKENS = 12
DRAWN = ["--max-completion-length", MOST_TOKENS]
METHODS: dict[str, list[object]] = {  # what is learned from the start, and how
    CONTINUED: [],
    "labels": [],
    "grpo": ["--method", "grpo", "--num-generations", 8, *DRAWN],
    "rloo": ["--method", "rloo", "--num-generations", 8, *DRAWN],
    "p3o": ["--method", "p3o", *DRAWN],
    "rest": ["--method", "rest", "--num-generations", 8, "--steps-per-generation", 20, "--lr", 5e-4, *DRAWN]}
DEFAULT = (CONTINUED, "labels", "grpo", "rest")
REACH = (0.05, 0.6)  # of the start's answers, right
POINTS = 0.1
SECONDS = 3600


def sums(seed: int) -> list[Row]:
    numbers = [(a, b) for a in range(2, 50) for b in range(2, 50)]
    random.Random(seed).shuffle(numbers)
    return [{"prompt": f"What is {a} + {b}? Answer with the number only.", "answer": str(a + b)} for a, b in numbers]


def judged(model: Path, folder: Path, adapter: Path, seed: int) -> tuple[list[int], list[int]]:
    """(of each question that judges, how many of SAMPLES answers are right; whether the likeliest answer is)"""
    rows = written(folder / f"held-{seed}.jsonl", sums(seed)[FEW + PROMPTS:][:ASKED])
    of = [folder / "grader.json", rows, "--model", model, "--adapter", adapter, "--max-tokens", MOST_TOKENS, "--seed",
          seed, "--json"]
    scores = edgetune("grade", *of, "--samples", SAMPLES)["scores"]
    drawn = [int(sum(scores[i:i + SAMPLES])) for i in range(0, len(scores), SAMPLES)]
    return drawn, [int(score) for score in edgetune("grade", *of)["scores"]]


def learned(model: Path, rows: Path, out: Path, *options: object) -> float:
    """Seconds of the training; a folder that is there is trained to its end, and not again."""
    record = out / "run.json"
    if not record.exists() or json.loads(record.read_text(encoding="utf-8"))["status"] != "done":
        edgetune("train", model, rows, "-o", out, "--no-govern", *options, *(["--resume"] if out.exists() else []),
                 "--json")
    return float(json.loads(record.read_text(encoding="utf-8"))["seconds"])


def measured(model: Path, folder: Path, variant: str, seed: int, args: argparse.Namespace) -> Result:
    """The start is trained where it is not there yet."""
    few = written(folder / f"few-{seed}.jsonl", sums(seed)[:FEW])
    prompts = written(folder / f"prompts-{seed}.jsonl", sums(seed)[FEW:][:PROMPTS])
    (folder / "grader.json").write_text(json.dumps(GRADER), encoding="utf-8")
    always = ["--eval", "none", "--seed", seed]
    start = folder / f"start-{seed}"
    seconds = learned(model, few, start, "--epochs", 4, *always)
    out = start
    if variant != START:
        out = folder / f"{variant.replace(' ', '-')}-{args.steps}-{seed}"
        options = METHODS[variant]
        graded = ["--grader", folder / "grader.json"] if options else []
        seconds = learned(model, few if variant == CONTINUED else prompts, out, "--start", start, "--batch-size", 8,
                          "--steps", args.steps, *options, *graded, *always)
    drawn, likeliest = judged(model, folder, out, seed)
    return {"variant": variant, "seed": seed, "steps": args.steps if variant != START else 0, "seconds": seconds,
            "drawn": drawn, "likeliest": likeliest}


# ---- what the results say ----


def pass_at_1(runs: Sequence[Result]) -> list[float]:
    """Of each question."""
    return [right / SAMPLES for run in runs for right in run["drawn"]]


def told(result: Result) -> str:
    return (f"pass@1 {statistics.fmean(pass_at_1([result])):.1%}, {sum(result['likeliest'])} of {ASKED} likeliest "
            f"answers right, {result['seconds']:.0f} s")


def show(results: Sequence[Result]) -> None:
    found = by_variant(results)
    print("\n| learned | seeds | steps | pass@1 | against sft continued | likeliest answer | against sft continued "
          "| s |\n" + "|---" * 8 + "|")
    for name, runs in found.items():
        told = [against(runs, found[CONTINUED], what) if name != CONTINUED and CONTINUED in found else ""
                for what in ("drawn", "likeliest")]
        likeliest = mean_interval([right for run in runs for right in run["likeliest"]])
        print(f"| {name} | {len(runs)} | {runs[0]['steps']} | {mean_interval(pass_at_1(runs))} | {told[0]} | "
              f"{likeliest} | {told[1]} | {max(run['seconds'] for run in runs):.0f} |")


def missed(results: Sequence[Result]) -> list[str]:
    """What does not hold."""
    found = by_variant(results)
    if START not in found or "grpo" not in found:
        return ["GRPO and its start are not both measured yet"]
    before = statistics.fmean(pass_at_1(found[START]))
    after = statistics.fmean(pass_at_1(found["grpo"]))
    wrong = []
    if not REACH[0] <= before <= REACH[1]:
        wrong.append(f"the start has {before:.1%} right, not {REACH[0]:.0%} to {REACH[1]:.0%}")
    if after < before + POINTS:
        wrong.append(f"GRPO has {after:.1%} right, its start {before:.1%}")
    if max(run["seconds"] for run in found["grpo"]) > SECONDS:
        wrong.append("GRPO took more than an hour")
    return wrong


def main() -> None:
    parser = arguments(__doc__, [*METHODS], DEFAULT, "sums.jsonl")
    parser.add_argument("--steps", type=int, default=60)
    args = parser.parse_args()
    prove(args, args.steps, measured, told, show, missed)


if __name__ == "__main__":
    main()
