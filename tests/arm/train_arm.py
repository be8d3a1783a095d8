"""Train a tiny quantized model on fixed token ids: `make MODEL` writes it, `train MODEL` prints row and losses as JSON.

`run.sh` makes the model on x86, trains it there and in an arm64 Python, and lets `compare` judge the two.
"""

import json
import sys
from pathlib import Path

import numpy as np

STEPS = 10
LIMIT = 1e-4  # between machines, in floats on both
ROUNDING = 1e-2  # between what a machine multiplies in when told to be fast, which differs from CPU to CPU, and floats


def make(path: str) -> None:
    """Blocks of both kinds: sliding window and QK-norm come from gemma3, each format family from the projections."""
    sys.path.insert(0, str(Path(__file__).parents[1]))
    from tiny import write_tiny

    formats = {"token_embd": "Q6_K", "attn": "Q4_0", "ffn_gate": "Q4_K", "ffn_up": "Q8_0", "ffn_down": "Q4_1"}
    write_tiny(path, "gemma3", formats, d_model=256, d_ff=256, n_heads=4, head_width=64)


def train(path: str) -> None:
    """Prints the row, what fast multiplies in there, and the losses by precision."""
    from edgetune.backends import cpu

    products = cpu.Cpu(1).products("fast")
    isa = cpu.Cpu(1).isa
    json.dump({"isa": isa, "products": products} | {p: losses(path, p) for p in ("exact", "fast")}, sys.stdout)


def losses(path: str, precision: str) -> list[float]:
    """Of ten steps of everything that a run does: packing, dropout, two micro-batches a step, warm-up and decay."""
    from edgetune.data.packing import Example
    from edgetune.training.trainer import Trainer

    trainer = Trainer(
        path, rank=4, lr=2e-3, steps=STEPS, batch_size=4, max_length=48, micro_batch=96, packing=True, dropout=0.1,
        threads=2, seed=5, precision=precision)
    rng = np.random.default_rng(1)
    examples = []
    for length in rng.integers(8, 40, 32):  # runs that count upwards: there is something to learn
        tokens = (rng.integers(0, 400) + np.arange(length)) % 400
        examples.append(Example(tokens.astype(np.int32), np.r_[0, np.ones(length - 1)].astype(np.float32)))
    trainer.add_examples(examples)
    return [result.loss for result in trainer.train()]


def compare(*paths: str) -> None:
    """Exit 1 unless the losses of all files agree and fall."""
    runs = [json.loads(Path(path).read_text()) for path in paths]
    exact, fast = (np.array([run[precision] for run in runs]) for precision in ("exact", "fast"))
    apart = float(np.abs(exact - exact[0]).max())
    rounded = np.abs(fast - exact).max(axis=1)
    rows = " and ".join(run["isa"] for run in runs)
    print(f"{STEPS} losses by {rows}: {exact[0, 0]:.4f} -> {exact[0, -1]:.4f}, {apart:.1e} apart (limit {LIMIT:.0e})")
    for run, far in zip(runs, rounded, strict=True):
        print(f"  {run['isa']}: {run['products']} is {far:.1e} from that (limit {ROUNDING:.0e})")
    agree = exact.shape[1] == fast.shape[1] == STEPS and apart <= LIMIT and rounded.max() <= ROUNDING
    if not agree or not exact[0, -1] < exact[0, 0] - 0.1:
        sys.exit("the losses do not agree, or do not fall")


if __name__ == "__main__":
    {"make": make, "train": train, "compare": compare}[sys.argv[1]](*sys.argv[2:])
