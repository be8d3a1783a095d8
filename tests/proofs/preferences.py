"""What pairs teach a model that knows little, beside the same rows as answers: SmolLM2 on Snips.

    python tests/proofs/preferences.py [--shared ../shared] [--seeds 0,1,2] [--only dpo sft ...] [--lr 1e-5 ...]
                                       [--rows 500] [--asked 300] [--out preferences.jsonl]

A model learns 50 rows by the default recipe. Of 500 other rows it answers each question four times by sampling; the
first wrong answer is the rejected one beside the right one, where there is one. From the adapter of the 50 rows each
method then learns these pairs, or the same rows as answers (sft), or nothing (none). 300 rows from 8,000 on judge:
the share of their pairs, made in the same way, that the model prefers, the margin in nats, and exact answers by
edgetune's own engine. --lr measures DPO at other rates too.

Results are added to --out, and what it has already is not measured again, so that the proof can run in pieces.
Exits with 1 unless DPO prefers more of the right answers than the adapter that it began from.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Iterator
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

from own_sets import wilson
from peers.snips import SYSTEM
from proofs.compared import SHARED, Result, Row, add_result, arguments, begun, edgetune, written

from edgetune.evaluation.judge import same

FEW = 50
HELD = 8000  # the first row that judges
SAMPLES = 4
METHODS = {"none": [], "sft": ["--method", "sft"], "dpo": ["--method", "dpo"],
           "dpo + sft": ["--method", "dpo", "--sft-weight", "0.2"], "sigmoid_norm": [
               "--method", "dpo", "--loss-type", "sigmoid_norm", "--beta", "2"],
           "orpo": ["--method", "orpo"]}


def own_pairs(model: Path, adapter: Path, rows: list[Row], seed: int, path: Path) -> Path:
    """A file of pairs: the right answer, and a wrong one of the adapter's."""
    if path.exists():
        return path
    prompts = written(path.with_suffix(".prompts"), [{"prompt": row["prompt"]} for row in rows])
    answers = path.with_suffix(".answers")
    answers.unlink(missing_ok=True)
    edgetune("generate", model, prompts, "--engine", "native", "--adapter", adapter, "--system", SYSTEM, "--samples",
             SAMPLES, "--temperature", 1, "--max-tokens", 96, "--seed", seed, "--save", answers, "--json")
    wrong: dict[int, str] = {}
    for number, line in enumerate(map(json.loads, answers.read_text(encoding="utf-8").splitlines())):
        if line["text"].strip() and not same(rows[number // SAMPLES]["completion"], line["text"]):
            wrong.setdefault(number // SAMPLES, line["text"])
    return written(path, [{"prompt": rows[i]["prompt"], "chosen": rows[i]["completion"], "rejected": text}
                          for i, text in sorted(wrong.items())])


def measured(model: Path, folder: Path, variant: str, options: list[str], seed: int,
             args: argparse.Namespace) -> Result:
    lines = (args.shared / "data" / "snips_train.jsonl").read_text(encoding="utf-8").splitlines()
    rows = [json.loads(line) for line in lines]
    first = folder / f"first-{seed}"
    few = written(folder / "few.jsonl", rows[:FEW])
    if not (first / "adapter.gguf").exists():
        edgetune("train", model, few, "-o", first, "--system", SYSTEM, "--no-answers", "--no-govern", "--seed",
                 seed, "--json")
    learned = rows[FEW:FEW + args.rows]
    judging = rows[HELD:HELD + args.asked]
    pairs = own_pairs(model, first, learned, seed, folder / f"pairs-{seed}.jsonl")
    held_pairs = own_pairs(model, first, judging, seed, folder / f"held-{seed}.jsonl")
    held = written(folder / "held.jsonl", judging)
    out = first
    seconds = 0.0
    if options:
        out = folder / f"{variant.replace(' ', '')}-{seed}"
        data = written(folder / "rows.jsonl", learned) if "sft" in options else pairs
        began = time.monotonic()
        if not (out / "adapter.gguf").exists():
            edgetune("train", model, data, "-o", out, "--start", first, "--system", SYSTEM, "--no-answers",
                     "--no-govern", "--seed", seed, *options, "--json")
        seconds = time.monotonic() - began
    of = ["--adapter", out, "--engine", "native", "--system", SYSTEM, "--json"]
    preferred = edgetune("eval", model, held_pairs, *of)
    answered = edgetune("eval", model, held, *of)
    return {"variant": variant, "seed": seed, "pairs": len(pairs.read_text(encoding="utf-8").splitlines()),
            "held_pairs": preferred["pairs"], "accuracy": preferred["preference_accuracy"],
            "margin": preferred["margin"], "exact": answered["exact"], "asked": answered["exact_rows"],
            "seconds": seconds}


def variants(args: argparse.Namespace) -> Iterator[tuple[str, list[str]]]:
    """(name, options) of each training."""
    for name, options in METHODS.items():
        if name in args.only:
            yield name, options
    for lr in args.lr:
        yield f"dpo lr {lr}", ["--method", "dpo", "--lr", lr]


def interval(share: float, n: int) -> str:
    low, high = wilson(round(share * n), n)
    return f"{share:.1%} ({low:.1%}-{high:.1%})"


def table(results: list[Result]) -> dict[str, float]:
    """Prints the table; the mean preference accuracy of each variant."""
    print("\n| learned | seeds | pairs | preference accuracy | margin | exact answers | s |\n" + "|---" * 7 + "|")
    found: dict[str, list[Result]] = {}
    for result in results:
        found.setdefault(result["variant"], []).append(result)
    means = {}
    for name, runs in found.items():
        pairs = sum(run["held_pairs"] for run in runs)
        asked = sum(run["asked"] for run in runs)
        means[name] = sum(run["accuracy"] * run["held_pairs"] for run in runs) / pairs
        exact = sum(run["exact"] * run["asked"] for run in runs) / asked
        margin = sum(run["margin"] for run in runs) / len(runs)
        print(f"| {name} | {len(runs)} | {runs[0]['pairs']} | {interval(means[name], pairs)} | {margin:.2f} | "
              f"{interval(exact, asked)} | {max(run['seconds'] for run in runs):.0f} |")
    return means


def main() -> None:
    parser = arguments(__doc__, [*METHODS], [*METHODS], "preferences.jsonl")
    parser.add_argument("--shared", type=Path, default=SHARED)
    parser.add_argument("--lr", nargs="*", default=[], help="rates of DPO beside the default")
    parser.add_argument("--rows", type=int, default=500)
    parser.add_argument("--asked", type=int, default=300)
    args = parser.parse_args()
    model, folder, results = begun(args)
    done = {(result["variant"], result["seed"]) for result in results}
    for seed in args.seeds:
        for variant, options in variants(args):
            if (variant, seed) not in done:
                add_result(args.out, results, measured(model, folder, variant, options, seed, args))
                print(json.dumps(results[-1]), flush=True)
    means = table(results)
    if "dpo" in means and "none" in means:
        sys.exit(means["dpo"] <= means["none"])


if __name__ == "__main__":
    main()
