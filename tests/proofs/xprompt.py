"""XPrompt's pruning of virtual tokens (Ma et al. 2022, arXiv 2210.04457), compared with prompt tuning of as many steps.

    python tests/proofs/xprompt.py [--model GGUF] [--shared ../shared] [--seeds 0] [--rate 0.05] [--out xprompt.jsonl]

A prompt of 20 virtual tokens learns the intents of 60 rows of Snips for half of the steps. Tokens with the lowest mean
|<p, dL/dp>| are left out, then of the others those of 16 pieces with the lowest sums are set to 0 and stay so. The rest
is trained for the other half, from the values that it had, at the same rate. Each share that is pruned is tried. The
loss on 100 held-out rows is compared with that of a prompt that is trained for all steps.

Exits with 1 if no share is better.
"""

import argparse
import json
import sys
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))

import numpy as np
from json_lines import read_lines
from proofs.compared import Result, arguments, end_with, measure_missing

from edgetune.adapters.prompt_tuning import PromptTuning
from edgetune.data.dataset import load_rows
from edgetune.data.packing import collate
from edgetune.training.trainer import Trainer

TOKENS = 20
PIECES = 16
STEPS = 60
ROWS = 60
HELD_OUT = 100
MAX_LENGTH = 128
PROMPT = "prompt-tuning"
HALF = "after half of the steps"
SHARES = [(0.25, 0.0), (0.5, 0.0), (0.75, 0.0), (0.5, 0.25)]  # of tokens and of pieces that are pruned


def rows_of(file: Path, count: int) -> list[dict[str, str]]:
    return [{"prompt": row["prompt"], "completion": json.loads(row["completion"])["intent"]}
            for row in read_lines(file)[:count]]


def opened(args: argparse.Namespace, seed: int, tokens: int, steps: int) -> Trainer:
    trainer = Trainer(args.model, family=PromptTuning(prompt_tokens=tokens), lr=args.rate, batch_size=4, steps=steps,
                      seed=seed, max_length=MAX_LENGTH)
    trainer.add(rows_of(args.shared / "data" / "snips_train.jsonl", ROWS))
    return trainer


def loss(trainer: Trainer, args: argparse.Namespace) -> float:
    rows = rows_of(args.shared / "data" / "snips_dev.jsonl", HELD_OUT)
    return trainer.loss(load_rows(rows, trainer.tokenizer, max_length=MAX_LENGTH).examples)[0]


def importance(trainer: Trainer) -> np.ndarray:
    """p * dL/dp of each row that is learned, summed within pieces: [rows, TOKENS, PIECES]."""
    found = []
    values = trainer.decoder.adapter.values["input"]
    for example in trainer.examples:
        batch = collate([example])
        trainer.arena.flat("dlora").fill(0.0)
        trainer.decoder.forward(batch, keep=True)
        trainer.decoder.backward(batch, batch.supervised_weights / example.supervised)
        product = values * trainer.decoder.adapter.gradients["input"]
        found.append(product.reshape(len(values), PIECES, -1).sum(2))
    return np.array(found)


def pruned(values: np.ndarray, scores: np.ndarray, tokens: float, pieces: float) -> tuple[np.ndarray, np.ndarray]:
    """The values of the remaining tokens [P, D], and 0 where their pieces are pruned, else 1."""
    kept = np.sort(np.argsort(np.abs(scores.sum(2)).mean(0))[round(tokens * len(values)):])
    of_pieces = np.abs(scores[:, kept]).mean(0)
    mask = np.ones(of_pieces.shape, np.float32)
    mask.flat[np.argsort(of_pieces, axis=None)[:round(pieces * of_pieces.size)]] = 0
    return values[kept], np.repeat(mask, values.shape[1] // PIECES, axis=1)


def measured(args: argparse.Namespace, seed: int) -> Result:
    whole = opened(args, seed, TOKENS, STEPS)
    whole.train()
    found: dict[str, Any] = {PROMPT: loss(whole, args)}
    half = opened(args, seed, TOKENS, STEPS // 2)
    half.train()
    found[HALF] = loss(half, args)
    scores = importance(half)
    for tokens, pieces in SHARES:
        values, mask = pruned(half.decoder.adapter.values["input"], scores, tokens, pieces)
        trainer = opened(args, seed, len(values), STEPS // 2)
        own = trainer.decoder.adapter.values["input"]
        own[:] = values * mask
        for _ in range(STEPS // 2):
            trainer.step()
            own *= mask
        found[f"{tokens:.0%} of tokens, {pieces:.0%} of pieces pruned"] = loss(trainer, args)
    return {"losses": found}


def main() -> None:
    parser = arguments(__doc__, "xprompt.jsonl")
    parser.add_argument("--seeds", type=lambda text: [int(seed) for seed in text.split(",")], default=[0])
    parser.add_argument("--rate", type=float, default=0.05)
    args = parser.parse_args()
    results = measure_missing(args, [{"seed": seed} for seed in args.seeds], lambda seed: measured(args, seed),
                              lambda result: "\n".join(f"{name}: {value:.4f}" for name, value in
                                                       result["losses"].items()))
    losses = [result["losses"] for result in results]
    mean = {name: float(np.mean([each[name] for each in losses])) for name in losses[0]}
    end_with({"a pruned prompt is better": min(mean, key=lambda name: mean[name]) not in (PROMPT, HALF)})


if __name__ == "__main__":
    main()
