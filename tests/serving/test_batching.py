"""The batcher and its cache against answers made one by one, and against the cache that llama.cpp really has."""

from __future__ import annotations

import random
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import llama_cpp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from random_adapters import SEVEN, decided_prompts, random_pairs, tokens_of, write_adapter

from edgetune.errors import EdgetuneError, MismatchError, TooMuchError, UsageError
from edgetune.serving import batcher as batching
from edgetune.serving.batcher import Batcher
from edgetune.serving.completion import Completion
from edgetune.serving.kv_cache import KvCache
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


@pytest.fixture(scope="module", params=["llama", "gemma3"])
def each_known(request: pytest.FixtureRequest, tiny_models: dict[str, Path],
               tmp_path_factory: pytest.TempPathFactory) -> Known:
    """gemma3: every other block sees a window."""
    return make_known(tiny_models[request.param], tmp_path_factory.mktemp(request.param), request.param)


@pytest.fixture(scope="module")
def the_known(tiny_llama: Path, tmp_path_factory: pytest.TempPathFactory) -> Known:
    return make_known(tiny_llama, tmp_path_factory.mktemp("llama"), "llama")


@pytest.fixture(scope="module")
def known(the_known: Known) -> list[tuple[str | None, list[int], str]]:
    return the_known.rows


@pytest.fixture(scope="module")
def files(the_known: Known) -> dict[str, Path]:
    return the_known.files


@pytest.fixture(scope="module")
def served(the_known: Known) -> Iterator[LlamaModel]:
    with opened(the_known.model, the_known.files, 512) as served:
        yield served


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


@pytest.fixture
def batcher(served: LlamaModel) -> Iterator[Batcher]:
    with started(served) as batcher:
        yield batcher


def until(condition: Callable[[], object]) -> None:
    end = time.monotonic() + DEADLINE
    while not condition():
        assert time.monotonic() < end, "it does not come to be"
        time.sleep(0.001)


# ---- the same answers ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("context", [96, 512])
def test_together_with_three_adapters_as_one_by_one(each_known: Known, context: int,
                                                    monkeypatch: pytest.MonkeyPatch) -> None:
    """Where the cache is too small for all that are at work, some are put back and go on later."""
    put_back: list[int] = []
    really = Batcher._put_back
    monkeypatch.setattr(Batcher, "_put_back", lambda self, answer: put_back.append(1) or really(self, answer))
    monkeypatch.setattr(batching, "GROWTH", 1)  # begin as many as there is any room for
    rows = each_known.rows
    with opened(each_known.model, each_known.files, context) as served, started(served) as batcher:
        for _ in range(3):  # the second time from what the first left in the cache
            tickets = [batcher.submit(prompt, adapter=adapter, max_tokens=10) for adapter, prompt, _ in rows]
            assert [ticket.text() for ticket in tickets] == [text for _, _, text in rows]
            assert {(ticket.finish, ticket.completion_tokens) for ticket in tickets} == {("length", 10)}
    assert bool(put_back) == (context == 96)


def test_many_threads_ask_cancel_load_and_unload(each_known: Known) -> None:
    """Every answer is whole or, cancelled, the beginning of what it would have been."""
    rows = each_known.rows
    wrong = list[tuple[str, str]]()

    def client(seed: int) -> None:
        rng = random.Random(seed)
        for _ in range(25):
            adapter, prompt, text = rng.choice(rows)
            ticket = batcher.submit(prompt, adapter=adapter, max_tokens=10)
            got = ""
            if rng.random() < 0.3:
                got = next(iter(ticket), "")
                ticket.cancel()
            got += ticket.text()
            if not (got == text if ticket.finish == "length" else text.startswith(got)):
                wrong.append((got, text))

    with opened(each_known.model, each_known.files, 160) as served, started(served) as batcher:
        with ThreadPoolExecutor(9) as pool:
            clients = [pool.submit(client, seed) for seed in range(8)]
            while not all(one.done() for one in clients):
                batcher.load("c", each_known.files["a"])
                _, prompt, text = next(row for row in rows if row[0] == "a")
                last = batcher.submit(prompt, adapter="c", max_tokens=10)
                batcher.unload("c")  # waits for it
                assert (last.finish, last.text()) == ("length", text)
        for one in clients:
            one.result()
    assert not wrong


def test_a_seed_decides_as_alone(served: LlamaModel, batcher: Batcher) -> None:
    prompts = [tokens_of(12, seed) for seed in range(5)]
    options = {"max_tokens": 20, "temperature": 1.3, "top_k": 0}
    together = [batcher.submit(prompt, seed=seed, **options) for seed, prompt in enumerate(prompts)]
    texts = [ticket.text() for ticket in together]
    free = [batcher.submit(prompts[0], **options).text() for _ in range(3)]
    assert len({texts[0], *free}) == 4  # no seed is any seed
    batcher.stop()
    for seed, (prompt, text) in enumerate(zip(prompts, texts, strict=True)):
        served.reset()
        assert "".join(served.generate(prompt, seed=seed, **options)) == text
    assert len(set(texts)) == len(texts)


def test_ends(served: LlamaModel, batcher: Batcher, known: list, monkeypatch: pytest.MonkeyPatch) -> None:
    adapter, prompt, text = next(row for row in known if len(row[2]) > 4)
    whole = batcher.submit(prompt, adapter=adapter, max_tokens=10)
    assert "".join(whole) == text
    assert (whole.finish, whole.completion_tokens, whole.prompt_tokens) == ("length", 10, len(prompt))
    assert whole.text() == ""  # all was taken
    stopped = batcher.submit(prompt, adapter=adapter, max_tokens=10, stop=[text[2:4], "absent"])
    assert (stopped.text(), stopped.finish) == (text[: text.index(text[2:4])], "stop")
    seen: list[int] = []
    monkeypatch.setattr(served.tokenizer, "is_end", lambda token: seen.append(token) or len(seen) == 4)
    ended = batcher.submit(prompt, adapter=adapter, max_tokens=10)
    assert text.startswith(ended.text())
    assert (ended.finish, ended.completion_tokens) == ("stop", 3)
    monkeypatch.undo()
    full = batcher.submit(tokens_of(500), max_tokens=400)
    full.text()
    assert (full.finish, full.completion_tokens) == ("length", 12)


# ---- the cache -------------------------------------------------------------------------------------------------------


@pytest.fixture
def decoded(served: LlamaModel, monkeypatch: pytest.MonkeyPatch) -> list[tuple[str | None, int]]:
    """(adapter, tokens) of every decode from now on."""
    sizes: list[tuple[str | None, int]] = []
    decode = served.cache.decode
    monkeypatch.setattr(served.cache, "decode",
                        lambda: sizes.append((served.active, served.cache.batch.size)) or decode())
    return sizes


def test_what_begins_alike_is_computed_once(batcher: Batcher, decoded: list) -> None:
    first = tokens_of(100)
    batcher.submit(first, max_tokens=1).text()
    assert decoded == [(None, batching.TOGETHER), (None, 100 - batching.TOGETHER)]
    again = batcher.submit([*first[:60], *tokens_of(9, 1)], max_tokens=1)
    again.text()
    assert again.cached_tokens == 60
    assert decoded[2:] == [(None, 9)]
    other = batcher.submit(first, adapter="a", max_tokens=1)
    other.text()
    assert other.cached_tokens == 0  # another adapter's keys and values are others
    same = batcher.submit(first, adapter="a", max_tokens=1)
    same.text()
    assert same.cached_tokens == 99
    facts = batcher.facts()
    assert (facts["requests"], facts["prompt_tokens"], facts["cached_tokens"]) == (4, 369, 159)
    assert (facts["completion_tokens"], facts["waiting"], facts["working"]) == (4, 0, 0)
    assert facts["cells_used"] == 100 + 9 + 100 == 209  # of 512; shared ones count once
    assert facts["cells"] == 512
    assert facts["tokens_per_s"] > 0


def test_tokens_per_second_are_of_the_time_in_which_somebody_is_answered(batcher: Batcher) -> None:
    start = time.monotonic()
    for seed in range(3):
        batcher.submit(tokens_of(8, seed), max_tokens=100, seed=0, temperature=5.0).text()
    seconds = time.monotonic() - start
    tokens = batcher.facts()["completion_tokens"]
    time.sleep(4 * seconds + 0.5)
    batcher.submit(tokens_of(8, 9), max_tokens=1).text()
    assert batcher.facts()["tokens_per_s"] > 0.8 * tokens / seconds  # the pause does not count


def test_those_who_come_together_share_too(batcher: Batcher, decoded: list) -> None:
    with batcher._wake:
        tickets = [batcher.submit(tokens_of(300) + tokens_of(5, seed), max_tokens=1) for seed in range(1, 5)]
    for ticket in tickets:
        ticket.text()
    assert sum(size for _, size in decoded) + sum(ticket.cached_tokens for ticket in tickets) == 4 * 305
    assert tickets[0].cached_tokens == 0
    assert min(ticket.cached_tokens for ticket in tickets[1:]) > 300 - batching.TOGETHER


def test_running_answers_do_not_wait_for_a_long_prompt(batcher: Batcher, decoded: list) -> None:
    begun = threading.Event()
    running = batcher.submit(tokens_of(20), max_tokens=150, on_piece=lambda *_: begun.set())
    assert begun.wait(DEADLINE)
    long = batcher.submit(tokens_of(300, 1), max_tokens=1)
    long.text()
    running.cancel()
    running.text()
    parts = [size for _, size in decoded if size > 1]
    most = batching.TOGETHER  # a part of the prompt, and the next token of the other answer
    assert parts[:6] == [20] + [most] * 4 + [300 - 4 * (most - 1) + 1]


def test_adapters_take_turns(batcher: Batcher, decoded: list) -> None:
    with batcher._wake:  # all three begin together
        tickets = [batcher.submit(tokens_of(9), adapter=name, max_tokens=20) for name in ADAPTERS]
    assert [ticket.text() and ticket.completion_tokens for ticket in tickets] == [20] * 3
    turns = [adapter for adapter, _ in decoded]
    assert set(turns[:3]) == set(ADAPTERS)
    assert turns == turns[:3] * 20


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_cells_are_those_of_llama_cpp(served: LlamaModel, data: st.DataObject) -> None:
    """Random beginnings, growth and ends: every sequence is in llama.cpp as we say, and cells are counted once."""
    context = served.cache
    sequences = KvCache(context)
    llama = llama_cpp
    memory = context._memory
    for _ in range(data.draw(st.integers(1, 25))):
        if sequences.working and data.draw(st.booleans()):
            sequence = data.draw(st.sampled_from(sequences.working))
            if data.draw(st.booleans()):
                sequences.end(sequence)
        elif len(sequences.working) < context.sequences - 2:
            prompt = data.draw(st.lists(st.integers(3, 5), min_size=1, max_size=90))
            adapter = data.draw(st.sampled_from(ADAPTERS))
            need = sequences.missing(adapter, prompt)
            if need > sequences.free:
                continue
            sequence = sequences.begin(adapter, prompt)
            rest = prompt[len(sequence.tokens) :]
            assert rest
            assert sequences.make_room(len(rest))
            context.batch.add(rest, len(sequence.tokens), sequence.id, np.zeros(len(rest), np.bool_))
            context.decode()  # raises if llama.cpp finds no room
            sequences.extend(sequence, rest)
            assert sequence.tokens == prompt
        held = sequences.working + sequences.kept
        assert len({sequence.id for sequence in held}) == len(held)
        for sequence in held:
            assert llama.llama_memory_seq_pos_max(memory, sequence.id) == len(sequence.tokens) - 1
            assert len(sequence.cells) == len(sequence.tokens)
        assert sequences.used == len({cell for sequence in held for cell in sequence.cells}) <= context.size
        assert sequences.free >= context.size - sequences.used


# ---- asking, waiting, leaving ----------------------------------------------------------------------------------------


def test_wrong_requests_are_refused_at_once(batcher: Batcher) -> None:
    for options, kind, what in (
        ({"prompt": []}, UsageError, "empty"),
        ({"prompt": tokens_of(512)}, EdgetuneError, "do not fit the context of 512 with an answer"),
        ({"prompt": [10**6]}, UsageError, "token ids"),
        ({"max_tokens": 0}, UsageError, "max_tokens is 0"),
        ({"temperature": -1.0}, UsageError, "temperature is -1.0"),
        ({"stop": [""]}, UsageError, "stop string"),
        ({"adapter": "c"}, UsageError, "no adapter named 'c'"),
    ):
        with pytest.raises(kind, match=what):
            batcher.submit(**{"prompt": tokens_of(5), **options})
    assert not batcher.busy


def test_too_many_are_told_to_come_again(served: LlamaModel) -> None:
    with started(served, parallel=1, queue=2) as batcher:
        first = batcher.submit(tokens_of(9), max_tokens=300)
        until(lambda: batcher.facts()["working"] == 1)
        waiting = [batcher.submit(tokens_of(9), max_tokens=2) for _ in range(2)]
        with pytest.raises(TooMuchError, match="2 requests wait already"):
            batcher.submit(tokens_of(9))
        waiting[0].cancel()  # leaves the queue though the first one goes on
        assert (waiting[0].text(), waiting[0].finish) == ("", "cancelled")
        batcher.submit(tokens_of(9), max_tokens=1)
        first.cancel()
        text = first.text()
        assert first.finish == "cancelled"
        again = batcher.submit(tokens_of(9), max_tokens=first.completion_tokens)
        assert again.text().startswith(text)  # what it gave was right
        assert waiting[1].text()
    with started(served, parallel=3, queue=2) as batcher:
        with batcher._wake:  # none has begun yet, but three could
            tickets = [batcher.submit(tokens_of(9), max_tokens=2) for _ in range(5)]
            with pytest.raises(TooMuchError):
                batcher.submit(tokens_of(9))
        assert len({ticket.text() for ticket in tickets}) == 1
    with pytest.raises(UsageError, match="parallel is 16; choose from 1 to 15"):
        Batcher(served, parallel=16, queue=1)


def test_adapters_come_and_go_while_others_answer(batcher: Batcher, files: dict[str, Path], tmp_path: Path,
                                                  known: list) -> None:
    long = batcher.submit(tokens_of(9), max_tokens=400)
    batcher.load("c", files["b"])
    assert not long.finish
    _, prompt, text = next(row for row in known if row[0] == "b")
    assert batcher.submit(prompt, adapter="c", max_tokens=10).text() == text
    with pytest.raises(UsageError, match="'c' is loaded already"):
        batcher.load("c", files["b"])
    with pytest.raises(MismatchError):
        batcher.load("d", write_adapter(tmp_path / "d.gguf", {"blk.9.attn_q": next(iter(random_pairs(
            batcher.served.path, {"attn_q": 2}, 0).values()))}, 1.0))
    with pytest.raises(UsageError, match="no adapter named 'd'"):
        batcher.unload("d")
    begun = threading.Event()
    last = batcher.submit(prompt, adapter="c", max_tokens=100, on_piece=lambda *_: begun.set())
    assert begun.wait(DEADLINE)
    with ThreadPoolExecutor(1) as pool:
        gone = pool.submit(batcher.unload, "c")
        until(lambda: "c" in batcher._leaving)
        with pytest.raises(UsageError, match="'c' is being removed"):
            batcher.submit(prompt, adapter="c")
        assert not gone.done()
        assert last.text().startswith(text)
        gone.result(DEADLINE)
    assert last.finish == "length"
    with pytest.raises(UsageError, match="no adapter named 'c'"):
        batcher.submit(prompt, adapter="c")
    batcher.load("c", files["a"])  # the name may be had again, and nothing of the old one is left in the cache
    _, prompt, text = next(row for row in known if row[0] == "a")
    assert batcher.submit(prompt, adapter="c", max_tokens=10).text() == text
    batcher.unload("c")
    long.cancel()
    assert long.text()


def test_a_failed_decode_ends_those_at_work_and_no_more(served: LlamaModel, batcher: Batcher, known: list) -> None:
    adapter, prompt, text = known[0]
    cache = served.cache
    cache.batch.add(tokens_of(512), 0, 0, np.zeros(512, np.bool_))
    cache.decode()  # behind the batcher's back: all cells are taken
    tickets = [batcher.submit(prompt, adapter=adapter, max_tokens=10) for _ in range(3)]
    with pytest.raises(EdgetuneError, match="llama_decode: 1"):
        tickets[0].text()
    assert tickets[0].finish == "error"
    for ticket in tickets[1:]:  # at work too, or waiting
        until(lambda ticket=ticket: ticket.finish)
        assert ticket.error or ticket.text() == text
    assert batcher.submit(prompt, adapter=adapter, max_tokens=10).text() == text


def test_pieces_reach_who_asked(batcher: Batcher, known: list) -> None:
    adapter, prompt, text = known[0]
    told: list[tuple[Completion, str | None, str | None]] = []
    ended = threading.Event()

    def on_piece(ticket: Completion, piece: str | None) -> None:
        told.append((ticket, piece, ticket.finish))
        if piece is None:
            ended.set()

    ticket = batcher.submit(prompt, adapter=adapter, max_tokens=10, on_piece=on_piece)
    assert ended.wait(DEADLINE)
    pieces = list(ticket)
    assert [piece for _, piece, _ in told] == [*pieces, None]
    assert "".join(pieces) == text
    assert {of for of, _, _ in told} == {ticket}
    assert (told[0][2], told[-1][2]) == (None, "length")

    def broken(_ticket: Completion, _piece: str | None) -> None:
        raise RuntimeError("the loop is closed")

    other = batcher.submit(prompt, adapter=adapter, max_tokens=10)
    lost = batcher.submit(prompt, adapter=adapter, max_tokens=10, on_piece=broken)
    with pytest.raises(RuntimeError, match="the loop is closed"):
        lost.text()
    assert lost.finish == "error"
    assert other.text() == text


def test_it_says_when_it_is_busy(served: LlamaModel) -> None:
    told: list[bool] = []
    with started(served, parallel=2) as batcher:
        batcher.on_busy = told.append
        before = batcher.idle_since
        with batcher._wake:  # none ends before the last one came
            tickets = [batcher.submit(tokens_of(9), max_tokens=30) for _ in range(4)]
        assert batcher.busy
        for ticket in tickets:
            ticket.text()
        until(lambda: told[-1:] == [False])
        assert told == [True, False]
        assert not batcher.busy
        assert batcher.idle_since > before


def test_stopping(served: LlamaModel, known: list) -> None:
    adapter, prompt, text = known[0]
    batcher = Batcher(served, parallel=2, queue=9)
    refused = (lambda: batcher.submit(prompt), lambda: batcher.load("c", Path("c")))
    for ask in refused:
        with pytest.raises(EdgetuneError, match="takes no requests"):
            ask()  # it was not started
    batcher.start()
    tickets = [batcher.submit(prompt, adapter=adapter, max_tokens=10) for _ in range(6)]
    batcher.stop()
    assert [(ticket.finish, ticket.text()) for ticket in tickets] == [("length", text)] * 6
    for ask in refused:
        with pytest.raises(EdgetuneError, match="takes no requests"):
            ask()
    batcher.stop()  # twice is fine
    with started(served, parallel=1) as batcher:
        tickets = [batcher.submit(tokens_of(9), max_tokens=400) for _ in range(3)]
        batcher.stop(now=True)
        assert [ticket.finish for ticket in tickets] == ["cancelled"] * 3
