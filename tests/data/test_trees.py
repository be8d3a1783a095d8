"""Forests, trees and micro-batches: what is shared is there once, and every prediction of every row."""

import numpy as np
import pytest
from counting import answered
from examples import examples
from hypothesis import given
from hypothesis import strategies as st

from edgetune.data.forest import by_branches, deepest, grow, shared
from edgetune.data.packing import Example, collate
from edgetune.data.trees import Tree, micro_batches
from edgetune.errors import UsageError

words = st.lists(st.integers(0, 2), min_size=1, max_size=9)
documents = st.lists(words, min_size=1, max_size=9)


@examples(100)
@given(documents, st.lists(st.integers(0, 2), max_size=12), st.integers(0, 2**31 - 1), st.integers(21, 40),
       st.integers(1, 12))
def test_parts_predict_what_their_rows_do(found, stem, seed, most, prefix):
    dice = np.random.default_rng(seed)
    examples = []
    for number, document in enumerate(found):
        tokens = np.array(stem + document, np.int32)
        weights = (dice.standard_normal(tokens.size) * (dice.random(tokens.size) > 0.5)).astype(np.float32)
        weights[0] = 0
        examples.append(Example(tokens, weights, group=number // 3 + 1))
    seen = []
    for one in micro_batches(examples, most, prefix=prefix):
        seen += map(id, one.examples)
        batches = [part.batch for part in one.parts] if isinstance(one, Tree) else [one]
        assert all(batch.tokens.size <= most and batch.supervised.size <= most for batch in batches)
        assert one.computed == sum(batch.tokens.size for batch in batches)
        if isinstance(one, Tree):
            check_tree(one, prefix)
    assert sorted(seen) == sorted(map(id, examples))


def check_tree(tree, prefix):
    whole = collate(tree.examples)
    entries = np.concatenate([part.entries for part in tree.parts])
    assert np.array_equal(np.sort(entries), np.arange(whole.supervised.size))
    for part in tree.parts:
        batch = part.batch
        assert np.array_equal(batch.targets, whole.targets[part.entries])
        assert np.array_equal(batch.supervised_weights, whole.supervised_weights[part.entries])
        assert np.array_equal(batch.positions[batch.supervised], whole.positions[whole.supervised[part.entries]])
        assert np.array_equal(batch.tokens[batch.supervised], whole.tokens[whole.supervised[part.entries]])
        assert batch.behind + batch.tokens.size == batch.seen_ends.size == batch.seen_positions.size
    n = tree.prefix.batch.tokens.size if tree.prefix else 0
    assert n <= prefix
    assert tree.prefix is None or (tree.prefix.batch.is_prefix and not tree.prefix.batch.behind)
    assert all(branch.batch.behind == n and not branch.batch.is_prefix for branch in tree.branches)
    assert all(np.array_equal(row.tokens[:n], tree.examples[0].tokens[:n]) for row in tree.examples)
    groups = [[row.group for row in branch.batch.examples] for branch in tree.branches]
    assert tree.parted or all(not set(a) & set(b) for i, a in enumerate(groups) for b in groups[:i])


def answers(prompt, own, count, group):
    """Rows of a prompt and an answer each, which is supervised."""
    begin = 1000 * (group + 1)
    return [answered([0, *range(begin, begin + prompt - 1), *range(9000 + own * i, 9000 + own * (i + 1))], own, group)
            for i in range(count)]


def test_a_group_that_does_not_fit_is_a_tree():
    """Eight answers of 96 to a prompt of 192: the prompt once, all but its last token, and then three at a time."""
    rows = answers(192, 96, 8, 1)
    tree, = micro_batches(rows, 300, prefix=191)
    assert isinstance(tree, Tree)
    assert tree.prefix
    assert tree.prefix.batch.tokens.size == 191
    assert not tree.prefix.entries.size
    assert [branch.batch.tokens.size for branch in tree.branches] == [289, 289, 193]
    assert tree.computed == 191 + 289 + 289 + 193
    assert tree.parted
    assert not tree.is_divisible
    with pytest.raises(UsageError, match="8 rows of one group have 960 tokens and a micro-batch takes 300"):
        micro_batches(rows, 300)
    assert [batch.computed for batch in micro_batches(rows, 960, prefix=191)] == [960]


def test_trees_are_made_where_they_save_most():
    """Three prompts, of which all begin with a token alike: a tree for each that several micro-batches share."""
    rows = [row for group in (1, 2, 3) for row in answers(192, 96, 4 if group < 3 else 2, group)]
    rows = [Example(row.tokens, row.weights) for row in rows]
    found = micro_batches(rows[::2] + rows[1::2], 400, prefix=191)
    assert [type(one).__name__ for one in found] == ["Tree", "Tree", "Batch"]
    trees = [one for one in found if isinstance(one, Tree)]
    assert all(tree.is_divisible and len(tree.branches) == 1 for tree in trees)
    assert sum(one.computed for one in found) == 2 * (192 + 4 * 96) + 192 + 2 * 96
    short = [Example(row.tokens[180:], row.weights[180:]) for row in rows]  # too little to be worth more passes
    assert not any(isinstance(one, Tree) for one in micro_batches(short, 400, prefix=11))


arrays = documents.map(lambda many: [np.array(one, np.int32) for one in many])


@given(arrays)
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


@given(arrays)
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


@given(arrays)
def test_sizes_add_up(found):
    assert sum(d.size - deepest(d, found[:i]) for i, d in enumerate(found)) == grow(found).tokens.size
    for a in found:
        for b in found:
            n = shared(a, b)
            assert np.array_equal(a[:n], b[:n])
            assert n == min(a.size, b.size) or a[n] != b[n]


@given(arrays, st.integers(0, 2**31 - 1), st.integers(30, 60))
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
