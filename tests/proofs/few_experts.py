"""Bytes read and time a token of a mixture of experts: streamed, and with all weights in memory.

    python tests/proofs/few_experts.py olmoe.gguf [--tokens 2 4 16 64 512] [--passes 3]

The model is what `big.py --shape olmoe` writes. A pass is a forward pass of T tokens with log-probabilities, without an
adapter; a step is that with activations kept, and backward down to the first block for LoRA on attention. Tokens are
random and other ones in each pass. Bytes are those that the process read from files through the kernel (rchar of
/proc/self/io), seconds are of the clock and of the process, each over all passes but the first. One process a way.
"""

import argparse
import json
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))


def read_bytes() -> int:
    return int(Path("/proc/self/io").read_text().split()[1])


def measure(args: argparse.Namespace) -> list[dict[str, Any]]:
    import numpy as np

    from edgetune.data.packing import Example, collate
    from edgetune.training.trainer import Trainer
    most = max(args.tokens)
    rng = np.random.default_rng(1)
    trainer = Trainer(args.model, rank=8, batch_size=1, max_length=most, precision="fast", threads=1, steps=3,
                      targets="q_proj,k_proj,v_proj,o_proj", weights=args.weights, recompute="none")
    trainer.add_examples([Example(rng.integers(0, 50000, most).astype(np.int32), np.ones(most, np.float32))])
    decoder = trainer.decoder

    def batch(n: int) -> Any:
        return collate([Example(rng.integers(0, 50000, n).astype(np.int32), np.ones(n, np.float32))])

    def step(found: Any) -> None:
        decoder.forward(found, keep=True)
        decoder.backward(found, np.ones(found.supervised.size, np.float32))

    results = []
    for n in args.tokens:
        for name, run in (("pass", decoder.score), ("step", step)):
            run(batch(n))
            begin = read_bytes(), time.perf_counter(), time.process_time()
            for _ in range(args.passes):
                run(batch(n))
            spent = read_bytes() - begin[0], time.perf_counter() - begin[1], time.process_time() - begin[2]
            results.append({"weights": args.weights, "what": name, "tokens": n, "mb": spent[0] / args.passes / 1e6,
                            "seconds": spent[1] / args.passes, "cpu_seconds": spent[2] / args.passes})
            print(json.dumps(results[-1]), flush=True)
    return results


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path)
    parser.add_argument("--tokens", type=int, nargs="+", default=[2, 4, 16, 64, 512])
    parser.add_argument("--passes", type=int, default=3)
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
