"""edgetune.data.forest: what is shared is there once, and each document sees itself alone."""

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from edgetune.data.forest import by_branches, deepest, grow, shared
from edgetune.data.packing import Example, collate
from edgetune.data.trees import micro_batches

words = st.lists(st.integers(0, 2), min_size=1, max_size=9)
documents = st.lists(words, min_size=1, max_size=9).map(lambda many: [np.array(one, np.int32) for one in many])


@given(documents)
def test_each_document_sees_its_own_beginning(found):
    forest = grow(found)
    beginnings = {tuple(document[:n]) for document in found for n in range(1, document.size + 1)}
    assert forest.tokens.size == len(beginnings)
    everything = np.arange(forest.tokens.size)
    for document, place in zip(found, forest.places, strict=True):
        assert np.array_equal(forest.tokens[place], document)
        assert np.array_equal(forest.positions[place], np.arange(document.size))
        for i, token in enumerate(place):
            assert np.array_equal(everything[(everything <= token) & (token < forest.ends)], place[:i + 1])


@given(documents)
def test_nothing_is_shared_where_it_is_not_to_be(found):
    forest = grow(found, share=False)
    assert np.array_equal(forest.tokens, np.concatenate(found))
    assert np.array_equal(forest.ends, np.repeat(np.cumsum([d.size for d in found]), [d.size for d in found]))
    assert np.array_equal(np.concatenate(forest.places), np.arange(forest.tokens.size))


def test_what_shares_nothing_stays_in_order():
    found = [np.array([first, 7, 7], np.int32) for first in (5, 3, 9)]
    apart = grow(found, share=False)
    for ours, theirs in zip(vars(grow(found)).values(), vars(apart).values(), strict=True):
        assert np.array_equal(ours, theirs)
    assert by_branches(found) == [0, 1, 2]


@given(documents)
def test_sizes_add_up(found):
    assert sum(d.size - deepest(d, found[:i]) for i, d in enumerate(found)) == grow(found).tokens.size
    for a in found:
        for b in found:
            n = shared(a, b)
            assert np.array_equal(a[:n], b[:n])
            assert n == min(a.size, b.size) or a[n] != b[n]


@given(documents, st.integers(0, 2**31 - 1), st.integers(30, 60))
def test_entries_are_those_of_the_rows(found, seed, most):
    """In each micro-batch, each example predicts its own targets, in order, from tokens that follow its own."""
    dice = np.random.default_rng(seed)
    examples = []
    for number, document in enumerate(found):
        weights = (number + 1 + dice.random(document.size)) * (dice.random(document.size) > 0.5)
        weights[0] = 0
        examples.append(Example(document, weights.astype(np.float32), group=number // 2 + 1))
    batches = micro_batches(examples, most)
    seen = []
    for batch in batches:
        assert max(batch.tokens.size, batch.supervised.size) <= most
        assert batch.row_tokens == sum(example.tokens.size for example in batch.examples)
        for example, part in batch.parts():
            seen.append(id(example))
            at = np.flatnonzero(example.weights)
            assert np.array_equal(batch.targets[part], example.tokens[at])
            assert np.array_equal(batch.supervised_weights[part], example.weights[at])
            assert np.array_equal(batch.tokens[batch.supervised[part]], example.tokens[at - 1])
            assert np.array_equal(batch.positions[batch.supervised[part]], at - 1)
        together = np.sort(np.concatenate([*batch.turns, np.empty(0, np.int64)]))
        assert np.array_equal(together, np.arange(batch.supervised.size))
        assert all(np.unique(batch.supervised[turn]).size == turn.size for turn in batch.turns)
        groups = [example.group for example in batch.examples]
        assert all(groups.count(group) == sum(e.group == group for e in examples) for group in groups)
    assert sorted(seen) == sorted(map(id, examples))


def test_what_begins_alike_stays_together():
    """Rows of two instructions in turn: each micro-batch has the rows of one."""
    stems = [np.full(20, number, np.int32) for number in (1, 2)]
    examples = [Example(np.append(stems[i % 2], np.int32(10 + i)), np.eye(21, dtype=np.float32)[20]) for i in range(8)]
    sizes = [(batch.tokens.size, batch.row_tokens) for batch in micro_batches(examples, 24)]
    assert sizes == [(24, 84), (24, 84)]
    assert collate(examples).tokens.size == 48
    apart = micro_batches(examples, 24, share=False)
    assert [batch.tokens.size for batch in apart] == [21] * 8
