"""What is computed once and shared, in what order decodes come, and the cache that llama.cpp really has."""

import threading
import time

import llama_cpp
import numpy as np
import pytest
from batchers import ADAPTERS, DEADLINE
from examples import examples
from hypothesis import given
from hypothesis import strategies as st
from random_adapters import tokens_of

from edgetune.serving import batcher as batching
from edgetune.serving.kv_cache import KvCache


def test_what_begins_alike_is_computed_once(batcher, decoded):
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
    assert facts["tokens_per_s"] == 0  # none of these had a second token


@pytest.mark.parametrize("pause", [0.0, 0.02])
def test_tokens_per_second_are_those_of_the_last_answer(batcher, pause):
    """Whatever came before it and however long ago it ended. pause: its reader's, a piece, in seconds."""
    pieces: list[str | None] = []
    batcher.submit(tokens_of(8), max_tokens=20, seed=0, temperature=5.0).text()
    start = time.monotonic()
    answer = batcher.submit(tokens_of(8, 1), max_tokens=40, seed=0, temperature=5.0,
                            on_piece=lambda _, piece: (pieces.append(piece), time.sleep(pause)))
    answer.text()
    least = (answer.completion_tokens - 1) / (time.monotonic() - start)
    time.sleep(0.5)
    found = batcher.facts()["tokens_per_s"]
    assert found >= round(least, 1) > 0
    assert found * pause * (len(pieces) - 2) <= answer.completion_tokens


def test_those_who_come_together_share_too(batcher, decoded):
    with batcher._wake:
        completions = [batcher.submit(tokens_of(300) + tokens_of(5, seed), max_tokens=1) for seed in range(1, 5)]
    for completion in completions:
        completion.text()
    assert sum(size for _, size in decoded) + sum(completion.cached_tokens for completion in completions) == 4 * 305
    assert completions[0].cached_tokens == 0
    assert min(completion.cached_tokens for completion in completions[1:]) > 300 - batching.TOGETHER


def test_running_answers_do_not_wait_for_a_long_prompt(batcher, decoded):
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


def test_adapters_take_turns(batcher, decoded):
    with batcher._wake:  # all three begin together
        completions = [batcher.submit(tokens_of(9), adapter=name, max_tokens=20) for name in ADAPTERS]
    assert [completion.text() and completion.completion_tokens for completion in completions] == [20] * 3
    turns = [adapter for adapter, _ in decoded]
    assert set(turns[:3]) == set(ADAPTERS)
    assert turns == turns[:3] * 20


@examples(60)
@given(st.data())
def test_cells_are_those_of_llama_cpp(served, data):
    """Random beginnings, growth and ends: every sequence is in llama.cpp as we say, and cells are counted once."""
    context = served.cache
    sequences = KvCache(context)
    llama = llama_cpp
    memory = context._memory
    for _ in range(data.draw(st.integers(1, 25))):
        if sequences.working and data.draw(st.booleans()):
            sequence = data.draw(st.sampled_from(sequences.working))
            if data.draw(st.booleans()):
                sequences.end(sequence, data.draw(st.booleans()))
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


def test_an_adapter_that_leaves_gives_its_cells_back_later(served):
    """Cells that come free between others are out of order for an answer that must repeat and is in progress."""
    sequences = KvCache(served.cache)
    gone = sequences.begin("a", [3, 4, 5])
    sequences.extend(gone, [3, 4, 5])
    sequences.end(gone, keeps_order=True)
    sequences.forget("a")
    assert sequences.in_order
    assert sequences.begin("a", [3, 4, 5]).tokens == []
    assert sequences.make_room(served.cache.size)
    assert sequences.used == 0
