"""Bytes read and time a token of a mixture of experts: streamed, and with all weights in memory.

    python tests/proofs/few_experts.py olmoe.gguf [--tokens 2 8 64 512] [--passes 2]

The model is what `big.py --shape olmoe` writes. A pass is a forward pass of T tokens with log-probabilities, in rows of
8 at most, because the tokens of a long row are alike in a random model. A step is that with activations kept, and
backward down to the first block for LoRA on attention. Tokens are random and other ones in each pass.

Bytes are those that the process read through the kernel (rchar of /proc/self/io). `seconds` are those of a free core:
without those in which others ran (schedstat), with those in which the process waited for the disk; `cpu_seconds` are
those in which it ran. All are over all passes but the first. One process a way.
"""

import argparse
import json
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

ROW = 8

sys.path.insert(0, str(Path(__file__).parents[1]))


def spent() -> tuple[int, float, float]:
    """Bytes read, seconds that passed but for those in which others ran, and seconds in which this thread ran."""
    ran, waited, _ = map(int, Path("/proc/thread-self/schedstat").read_text().split())
    return int(Path("/proc/self/io").read_text().split()[1]), time.perf_counter() - waited / 1e9, ran / 1e9


def measure(args: argparse.Namespace) -> list[dict[str, Any]]:
    import numpy as np

    from edgetune.data.packing import Example, collate
    from edgetune.training.trainer import Trainer
    most = max(args.tokens)
    rng = np.random.default_rng(1)
    trainer = Trainer(args.model, rank=8, batch_size=max(1, most // ROW), max_length=ROW, precision="fast",
                      threads=1, steps=3, targets="q_proj,k_proj,v_proj,o_proj", weights=args.weights, recompute="none")
    decoder = trainer.decoder

    def batch(n: int) -> Any:
        sizes = [ROW] * (n // ROW) or [n]
        return collate([Example(rng.integers(0, 50000, size).astype(np.int32), np.ones(size, np.float32))
                        for size in sizes])

    def step(found: Any) -> None:
        decoder.forward(found, keep=True)
        decoder.backward(found, np.ones(found.supervised.size, np.float32))

    results = []
    for n in args.tokens:
        for name, run in (("pass", decoder.score), ("step", step)):
            run(batch(n))
            begin = spent()
            for _ in range(args.passes):
                run(batch(n))
            nbytes, seconds, ran = (end - first for end, first in zip(spent(), begin, strict=True))
            results.append({"weights": args.weights, "what": name, "tokens": n, "mb": nbytes / args.passes / 1e6,
                            "seconds": seconds / args.passes, "cpu_seconds": ran / args.passes})
            print(json.dumps(results[-1]), flush=True)
    return results


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path)
    parser.add_argument("--tokens", type=int, nargs="+", default=[2, 8, 64, 512])
    parser.add_argument("--passes", type=int, default=2)
    parser.add_argument("--weights", choices=("streamed", "resident"))
    args = parser.parse_args()
    if args.weights:
        measure(args)
        return
    for weights in ("streamed", "resident"):
        subprocess.run([sys.executable, __file__, str(args.model), "--weights", weights, "--passes", str(args.passes),
                        "--tokens", *map(str, args.tokens)], check=True)


if __name__ == "__main__":
    main()
