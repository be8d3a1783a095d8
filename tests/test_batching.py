"""edgetune.batching and sequences against answers made one by one, and against the cache that llama.cpp really has."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from test_serve import SEVEN, decided_prompts, random_pairs, tokens_of, write_adapter

from edgetune.batching import Batcher
from edgetune.serve import Served

ADAPTERS = (None, "a", "b")
DEADLINE = 60.0  # seconds, for a machine that does other things too


@pytest.fixture(scope="module")
def files(tiny_llama: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("adapters")
    return {name: write_adapter(folder / f"{name}.gguf", random_pairs(tiny_llama, dict.fromkeys(SEVEN, 4), seed), 8.0)
            for seed, name in enumerate("ab")}


@pytest.fixture(scope="module")
def served(tiny_llama: Path, files: dict[str, Path]) -> Iterator[Served]:
    with Served(tiny_llama, context=512, threads=1) as served:
        for name, file in files.items():
            served.load_adapter(file, name)
        yield served


@pytest.fixture
def batcher(served: Served) -> Iterator[Batcher]:
    batcher = Batcher(served, parallel=6, queue=64)
    batcher.start()
    yield batcher
    batcher.stop(now=True)
    served.use(None)
    served.reset()


def until(condition: Callable[[], object]) -> None:
    end = time.monotonic() + DEADLINE
    while not condition():
        assert time.monotonic() < end, "it does not come to be"
        time.sleep(0.001)


def one_by_one(served: Served, adapter: str | None, prompts: list[list[int]], max_tokens: int) -> list[str]:
    served.use(adapter)
    texts = []
    for prompt in prompts:
        served.reset()
        texts.append("".join(served.generate(prompt, max_tokens=max_tokens)))
    return texts


@pytest.fixture(scope="module")
def known(served: Served) -> list[tuple[str | None, list[int], str]]:
    """(adapter, prompt, its greedy answer alone), 10 tokens with no close race; many begin alike."""
    rows = []
    for adapter in ADAPTERS:
        served.use(adapter)
        prompts = decided_prompts(served, [14, 40, 80, 14, 25], 10, tokens_of(9))
        rows += [(adapter, *pair) for pair in zip(prompts, one_by_one(served, adapter, prompts, 10), strict=True)]
    served.use(None)
    served.reset()
    assert len({text for _, _, text in rows}) > len(rows) // 2
    return rows


# ---- the same answers ------------------------------------------------------------------------------------------------


def test_together_with_three_adapters_as_one_by_one(batcher: Batcher, known: list) -> None:
    for _ in range(2):  # the second time from what the first left in the cache
        tickets = [batcher.submit(prompt, adapter=adapter, max_tokens=10) for adapter, prompt, _ in known]
        assert [ticket.text() for ticket in tickets] == [text for _, _, text in known]
        assert all(ticket.finish in ("length", "stop") and ticket.completion_tokens <= 10 for ticket in tickets)


def test_one_cache_full_of_answers(tiny_llama: Path, files: dict[str, Path], known: list) -> None:
    """Too small for all that are at work: some are put back and go on later."""
    with Served(tiny_llama, context=96, threads=1) as served:
        for name, file in files.items():
            served.load_adapter(file, name)
        batcher = Batcher(served, parallel=6, queue=64)
        batcher.start()
        with ThreadPoolExecutor(5) as pool:
            texts = list(pool.map(lambda row: batcher.submit(row[1], adapter=row[0], max_tokens=10).text(), known * 2))
        batcher.stop()
    assert texts == [text for _, _, text in known] * 2
