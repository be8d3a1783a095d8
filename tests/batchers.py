"""A model with two adapters whose answers are known, and a batcher that answers with it."""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from random_adapters import SEVEN, decided_prompts, random_pairs, tokens_of, write_adapter

from edgetune.serving.batcher import Batcher
from edgetune.serving.llama import LlamaModel

ADAPTERS = (None, "a", "b")
DEADLINE = 60.0  # seconds, for a machine that does other things too


@contextmanager
def opened(model: Path, files: dict[str, Path], context: int) -> Iterator[LlamaModel]:
    """A model with adapters whose answers end where they are told to, not where a random token happens to say so."""
    with LlamaModel(model, context=context, threads=1) as served:
        for name, file in files.items():
            served.load_adapter(file, name)
        served.tokenizer.is_end = lambda _: False  # type: ignore[method-assign]
        yield served


@dataclass(frozen=True)
class Known:
    """A model, two adapters, and (adapter, prompt, its greedy answer of 10 tokens alone), with no close race."""

    model: Path
    files: dict[str, Path]
    rows: list[tuple[str | None, list[int], str]]


def make_known(model: Path, folder: Path, architecture: str) -> Known:
    """Prompts of all lengths, many of which begin alike."""
    files = {name: write_adapter(folder / f"{name}.gguf", random_pairs(model, dict.fromkeys(SEVEN, 4), seed), 8.0,
                                 architecture=architecture) for seed, name in enumerate("ab")}
    rows = []
    with opened(model, files, 512) as served:
        for adapter in ADAPTERS:
            served.use(adapter)
            for prompt in decided_prompts(served, [14, 40, 80, 14, 25, 61], 10, tokens_of(9)):
                served.reset()
                rows.append((adapter, prompt, "".join(served.generate(prompt, max_tokens=10))))
    assert len({text for _, _, text in rows}) > len(rows) // 2
    return Known(model, files, rows)


@contextmanager
def started(served: LlamaModel, parallel: int = 6, queue: int = 64) -> Iterator[Batcher]:
    batcher = Batcher(served, parallel=parallel, queue=queue)
    batcher.start()
    try:
        yield batcher
    finally:
        batcher.stop(now=True)
        served.use(None)
        served.reset()


def until(condition: Callable[[], object]) -> None:
    end = time.monotonic() + DEADLINE
    while not condition():
        assert time.monotonic() < end, "it does not come to be"
        time.sleep(0.001)
