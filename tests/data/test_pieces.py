"""Pieces of a forest: each token is reached from its document's beginning, and few states are kept."""

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from edgetune.data.packing import PIECE, Example, collate, kept_states, pieces_of


@st.composite
def documents(draw):
    """Rows of few different tokens, so that many begin alike."""
    rows = draw(st.lists(st.lists(st.integers(0, 2), min_size=1, max_size=30), min_size=1, max_size=12))
    shared = draw(st.lists(st.integers(0, 2), max_size=40))
    return [np.array(shared * draw(st.integers(0, 1)) + row, np.int32) for row in rows]


def batch_of(rows):
    return collate([Example(row, np.zeros(row.size, np.float32)) for row in rows])


def path_of(before, token):
    """The tokens of a document up to this one."""
    found = []
    while token >= 0:
        found.append(token)
        token = int(before[token])
    return found[::-1]


@given(documents(), st.integers(1, 9))
def test_each_token_has_the_state_of_its_path(rows, longest):
    before = batch_of(rows).before
    states = {-1: []}
    seen = []
    for begin, end, replayed, source, kept in pieces_of(before, longest).tolist():
        assert begin == len(seen)
        assert 0 < end - begin <= longest - replayed
        state = [*states[source], *(path_of(before, begin)[-1 - replayed:-1])]
        for token in range(begin, end):
            state.append(token)
            assert state == path_of(before, token)
            seen.append(token)
        if kept >= 0:
            assert kept not in states
            states[kept] = state
    assert len(seen) == before.size
    assert sorted(states) == [*range(-1, len(states) - 1)]
    assert len(states) - 1 <= before.size // longest


@given(documents(), st.integers(1, 9))
def test_backward_gives_each_token_what_its_continuations_say(rows, longest):
    """Each token of a path adds 1 to the gradient of all before it and of itself: it has that of its subtree."""
    batch = batch_of(rows)
    before = batch.before
    grads = np.zeros(before.size)
    of_kept = {}
    for begin, end, replayed, source, kept in pieces_of(before, longest)[::-1].tolist():
        grad = of_kept.pop(kept, 0)
        for token in range(end - 1, begin - 1, -1):
            grad += 1
            grads[token] += grad
        for token in path_of(before, begin)[-1 - replayed:-1]:
            grads[token] += grad
        if source >= 0:
            of_kept[source] = of_kept.get(source, 0) + grad
    assert not of_kept
    assert grads.tolist() == (batch.ends - np.arange(before.size)).tolist()


def test_a_row_alone_keeps_a_state_each_64_tokens():
    row = np.zeros(300, np.int32)
    pieces = batch_of([row]).pieces
    assert (pieces[:, 1] - pieces[:, 0]).tolist() == [300 - 4 * PIECE, PIECE, PIECE, PIECE, PIECE]
    assert pieces[:, 3].tolist() == [-1, 3, 2, 1, 0]
    assert kept_states(300) == 4


def test_nothing_is_replayed_without_branches():
    rows = [np.full(n, n, np.int32) for n in (100, 3, 65, 64)]
    pieces = batch_of(rows).pieces
    assert not pieces[:, 2].any()
    assert [begin for begin, *_, source, _ in pieces.tolist() if source < 0] == [0, 100, 103, 168]


def test_no_tokens_have_no_pieces():
    assert pieces_of(np.empty(0, np.int32)).shape == (0, 5)
