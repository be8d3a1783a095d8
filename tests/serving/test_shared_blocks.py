"""Blocks that sequences share: each reads what it wrote, whatever others do, in as few blocks as are promised."""

import numpy as np
import pytest
from examples import examples
from hypothesis import given
from hypothesis import strategies as st

from edgetune.backends.base import CACHE
from edgetune.errors import EdgetuneError
from edgetune.serving.shared_blocks import SharedBlocks, blocks_of

SEQUENCES = 4
LONGEST = 70
STEPS = st.lists(st.tuples(st.integers(0, 2), st.integers(0, SEQUENCES - 1), st.integers(0, SEQUENCES - 1),
                           st.integers(1, LONGEST)), max_size=40)


@examples(200)
@given(STEPS)
def test_each_sequence_reads_what_it_wrote(steps):
    blocks = SharedBlocks(blocks_of(SEQUENCES * LONGEST, SEQUENCES))
    cache = np.full(blocks_of(SEQUENCES * LONGEST, SEQUENCES) * CACHE, -1)
    written: dict[int, list[int]] = {i: [] for i in range(SEQUENCES)}
    token = 0
    for kind, sequence, other, count in steps:
        if kind == 0:
            count = min(count, LONGEST - len(written[sequence]))
            slots, copies = blocks.extend(sequence, count) if count else ([], [])
            for source, own in copies:
                cache[own * CACHE:(own + 1) * CACHE] = cache[source * CACHE:(source + 1) * CACHE]
            for slot in slots:
                cache[slot] = token
                written[sequence].append(token)
                token += 1
        elif kind == 1:
            blocks.cut(sequence, count - 1)
            del written[sequence][count - 1:]
        elif sequence != other:
            blocks.cut(sequence, 0)
            blocks.copy(other, sequence, count)
            written[sequence] = written[other][:count]
        for each, tokens in written.items():
            assert blocks.held(each, 1 << 30) == len(tokens)
            assert blocks.held(each, len(tokens) // 2) == len(tokens) // 2
            if tokens:
                assert seen(cache, blocks.paths(each, 1)[0]) == tokens


def seen(cache, path):
    """What a token with this path sees: of each block all up to the slot."""
    return [int(token) for slot in path if slot >= 0 for token in cache[slot // CACHE * CACHE:slot + 1]]


def test_a_token_sees_itself_and_those_before():
    blocks = SharedBlocks(8)
    blocks.extend(3, 20)
    slots, copies = blocks.extend(3, 30)
    assert not copies
    paths = blocks.paths(3, 30)
    assert paths.shape == (30, 4)
    assert paths.max(1).tolist() == slots.tolist() or set(slots) <= set(paths.ravel().tolist())
    cache = np.arange(8 * CACHE)
    assert [len(seen(cache, path)) for path in paths] == list(range(21, 51))


def test_no_room_is_an_error():
    blocks = SharedBlocks(2)
    blocks.extend(0, 2 * CACHE)
    with pytest.raises(EdgetuneError, match="no room"):
        blocks.extend(1, 1)
    blocks.clear()
    assert blocks.extend(1, 1)[0].tolist() == [0]
