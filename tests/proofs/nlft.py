"""Whether NLFT's evidence teaches anything: its ablation on the own answers of SmolLM2 to sums.

    python tests/proofs/nlft.py [--seeds 0,1,2] [--only nlft ...] [--few 50] [--steps 24] [--out nlft.jsonl]

A model learns 60 sums, as in proofs/sums.py; then some 40 % of its answers to others are right. To `--few` others it
answers once each, drawn at temperature 1: that is y. Of each y it is known whether it is right, and where not, a
judgment says so. From the same adapter, for as many steps of 8 rows, each arm learns

    answers       the right answers, as a teacher writes them
    own           y, right or wrong
    verified      those y that are right
    random        those y that are right, each token with a random weight between 0 and 2
    nlft+         those y that are right, by their evidence
    nlft          all y: right ones by their evidence, wrong ones by what the judgment makes likelier

"random" says whether the evidence matters, or any weights would do. 100 other sums judge: pass@1 of four answers each
at temperature 1, and the likeliest answer. A sign test compares each arm with "verified" and with "answers", question
by question over all seeds, by how many of the four answers are right. Results are added to --out, and what it has
already is not measured again.

Exits with 1 unless nlft has more right answers than verified, with p below 0.05: on by default where it wins.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

sys.path.insert(0, str(Path(__file__).parents[1]))

from proofs.compared import (
    START,
    Result,
    Row,
    add_result,
    against,
    arguments,
    begun,
    by_variant,
    edgetune,
    end,
    mean_interval,
    unbeaten,
    written,
)
from proofs.sums import FEW, GRADER, MOST_TOKENS, SAMPLES, judged, learned, pass_at_1, sums

import edgetune as library
from edgetune.data.dataset import Dataset, load_rows
from edgetune.evaluation.judge import same
from edgetune.llamacpp.tokenizer import Tokenizer
from edgetune.training.config import TrainConfig
from edgetune.training.run import run

LR = 3e-4
ANSWERS = "answers"
VERIFIED = "verified"
ARMS = (ANSWERS, "own", VERIFIED, "random", "nlft+", "nlft")
SIGNIFICANT = 0.05
judged_once = cache(judged)  # the start answers the same, whatever it is compared with


def measured(model: Path, folder: Path, arm: str, few: int, seed: int, steps: int) -> Result:
    (folder / "grader.json").write_text(json.dumps(GRADER), encoding="utf-8")
    start = folder / f"start-{seed}"
    learned(model, written(folder / f"few-{seed}.jsonl", sums(seed)[:FEW]), start, "--epochs", 4, "--eval", "none",
            "--seed", seed)
    adapter = start
    own = own_answers(model, folder, start, sums(seed)[FEW:][:few], seed)
    if arm != START:
        adapter = folder / f"{arm}-{few}-{seed}"
        trained(model, folder, adapter, start, arm, learned_by(arm, own), seed, steps)
    drawn, likeliest = judged_once(model, folder, adapter, seed)
    return {"variant": arm, "few": few, "seed": seed, "steps": steps, "drawn": drawn, "likeliest": likeliest,
            "right": sum(row["judgment"] is None for row in own)}


def own_answers(model: Path, folder: Path, start: Path, rows: list[Row], seed: int) -> list[Row]:
    """One answer to each sum, with the right one and, where it is wrong, a judgment."""
    saved = folder / f"own-{len(rows)}-{seed}.answers"
    if not saved.exists():
        prompts = written(folder / f"own-{len(rows)}-{seed}.prompts", [{"prompt": row["prompt"]} for row in rows])
        edgetune("generate", model, prompts, "--engine", "native", "--adapter", start, "--temperature", 1,
                 "--max-tokens", MOST_TOKENS, "--seed", seed, "--save", saved, "--json")
    texts = [json.loads(line)["text"].strip() for line in saved.read_text(encoding="utf-8").splitlines()]
    return [{"prompt": row["prompt"], "completion": text, "reference": row["answer"], "judgment":
             None if same(row["answer"], text) else f"The answer {text} is wrong. The sum is {row['answer']}."}
            for row, text in zip(rows, texts, strict=True) if text]


def learned_by(arm: str, own: list[Row]) -> list[Row]:
    if arm == ANSWERS:
        return [{"prompt": row["prompt"], "completion": row["reference"]} for row in own]
    wanted = own if arm in ("own", "nlft") else [row for row in own if row["judgment"] is None]
    if arm.startswith("nlft"):
        return wanted
    return [{"prompt": row["prompt"], "completion": row["completion"]} for row in wanted]


def trained(model: Path, folder: Path, out: Path, start: Path, arm: str, rows: list[Row], seed: int,
            steps: int) -> None:
    if (out / "adapter.gguf").exists():
        return
    options: dict[str, Any] = {"steps": steps, "lr": LR, "batch_size": 8, "seed": seed}
    if arm == "random":
        record = json.loads((start / "run.json").read_text(encoding="utf-8"))["options"]
        size = {name: record[name] for name in ("rank", "alpha", "rslora", "targets", "blocks")}
        bundle = library.open_bundle(model)
        run(bundle, randomly_weighted(bundle, rows, seed), out, TrainConfig(**{**options, **size}), start=start)
        return
    method = ["--method", "nlft"] if arm.startswith("nlft") else []
    flags = [word for name, value in options.items() for word in (f"--{name.replace('_', '-')}", value)]
    edgetune("train", model, written(folder / f"{out.name}.jsonl", rows), "-o", out, "--start", start, "--eval", "none",
             "--no-answers", "--no-govern", *method, *flags, "--json")


def randomly_weighted(bundle: Any, rows: list[Row], seed: int) -> Dataset:
    rng = np.random.default_rng(seed)
    data = load_rows(rows, Tokenizer(bundle.gguf), max_length=512)
    for example in data.examples:
        example.weights[:] *= rng.uniform(0, 2, example.weights.size).astype(np.float32)
    return data


# ---- what the results say ----


def show(results: Sequence[Result]) -> None:
    print("\n| rows | learned | seeds | y right | pass@1 | against verified | against answers | likeliest answer |\n"
          + "|---" * 8 + "|")
    for few in sorted({result["few"] for result in results}):
        found = by_variant([result for result in results if result["few"] == few])
        for name, runs in found.items():
            told = [against(runs, found[other], "drawn") if other in found and name not in (other, START) else ""
                    for other in (VERIFIED, ANSWERS)]
            likeliest = mean_interval([right for one in runs for right in one["likeliest"]])
            print(f"| {few} | {name} | {len(runs)} | {', '.join(str(one['right']) for one in runs)} | "
                  f"{mean_interval(pass_at_1(runs))} | {told[0]} | {told[1]} | {likeliest} |")


def missed(results: Sequence[Result]) -> list[str]:
    wrong = []
    for few in sorted({result["few"] for result in results}):
        found = by_variant([result for result in results if result["few"] == few])
        if VERIFIED in found and "nlft" in found:
            wrong += [f"of {few} rows {told}" for told in unbeaten("nlft", VERIFIED, found, "drawn")]
    return wrong


def main() -> None:
    parser = arguments(__doc__, ARMS, ARMS, "nlft.jsonl")
    parser.add_argument("--few", type=lambda text: [int(few) for few in text.split(",")], default=[25, 50, 100])
    parser.add_argument("--steps", type=int, default=24)
    args = parser.parse_args()
    model, folder, results = begun(args)
    done = {(result["variant"], result["few"], result["seed"]) for result in results}
    for few in args.few:
        for seed in args.seeds:
            for arm in (START, *args.only):
                if (arm, few, seed) not in done:
                    add_result(args.out, results, measured(model, folder, arm, few, seed, args.steps))
                    share = np.mean(results[-1]["drawn"]) / SAMPLES
                    print(f"{few} rows, {arm}, seed {seed}: pass@1 {share:.1%}", flush=True)
    show(results)
    end(missed(results))


if __name__ == "__main__":
    main()
