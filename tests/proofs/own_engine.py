"""The speed of answers by our own engine, with adapters that llama.cpp cannot apply, next to llama.cpp's: tokens a CPU
second of one thread, of the prompt and of the answer, alone and eight together.

    python tests/proofs/own_engine.py [MODEL] [--repeats 3]

The adapters are as training begins them, which costs what trained ones cost. The best of the repeats counts.
"""

import argparse
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

from peers.snips import model_path
from random_adapters import tokens_of

from edgetune.adapters.base import family_named
from edgetune.formats.bundle import Bundle, open_bundle
from edgetune.serving.batcher import Batcher
from edgetune.serving.llama import LlamaModel
from edgetune.training.trainer import Trainer

FAMILIES = ("lora", "houlsby", "molora")
CASES = ((40, 1), (400, 1), (1500, 1), (40, 8))  # tokens of a prompt, answers together
ANSWER = 64  # tokens


def adapters(bundle: Bundle, folder: Path) -> Iterator[tuple[str, Path]]:
    for name in FAMILIES:
        trainer = Trainer(bundle, family=family_named(name)(), steps=1, batch_size=1, max_length=32, threads=1)
        trainer.save(folder / name)
        yield name, folder / name


def timed(served: LlamaModel, adapter: str | None, length: int, together: int) -> tuple[float, float]:
    """CPU seconds of reading the prompts, and of the answers."""
    batcher = Batcher(served, parallel=8, queue=8)
    batcher.start()
    prompts = [tokens_of(length, seed) for seed in range(together)]
    spent = []
    for budget in (1, ANSWER + 1):  # the second time the prompts are in the cache
        began = time.process_time()
        for answer in [batcher.submit(prompt, adapter=adapter, max_tokens=budget) for prompt in prompts]:
            answer.text()
        spent.append(time.process_time() - began)
    batcher.stop()
    return spent[0], spent[1]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", nargs="?", type=Path)
    parser.add_argument("--repeats", type=int, default=3)
    args = parser.parse_args()
    bundle = open_bundle(args.model or model_path())
    with (tempfile.TemporaryDirectory() as folder,
          LlamaModel(bundle.gguf, context=2048, threads=1, sequences=24, small_batch=True) as served):
        served.tokenizer.is_end = lambda _: False  # type: ignore[method-assign]  # all answers are as long
        for name, path in adapters(bundle, Path(folder)):
            served.load_adapter(path, name)
        for length, together in CASES:
            for adapter in (None, *served.adapters()):
                found = [timed(served, adapter, length, together) for _ in range(args.repeats)]
                read, written = (min(times) for times in zip(*found, strict=True))
                print(f"{together} x {length} tokens, {adapter or 'base'}: {length * together / read:.0f} tokens of "
                      f"prompts and {ANSWER * together / written:.0f} of answers a CPU second", flush=True)


if __name__ == "__main__":
    main()
