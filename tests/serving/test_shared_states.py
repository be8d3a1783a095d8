"""Slots of states by sequence: random operations beside a plain model, whose states are the texts themselves."""

import numpy as np
import pytest
from examples import examples
from hypothesis import given
from hypothesis import strategies as st

from edgetune.errors import EdgetuneError
from edgetune.models.states import ZEROS
from edgetune.serving.shared_blocks import LEAST, SharedStates, slots_of

SEQUENCES = 4


@examples(200)
@given(st.integers(0, 2**32 - 1))
def test_a_slot_has_the_state_that_its_sequence_continues(seed):
    rng = np.random.default_rng(seed)
    count = slots_of(SEQUENCES, 1 << 40)
    states = SharedStates(count)
    content: list[tuple[int, ...]] = [()] * count  # of each slot: the text whose state it has
    texts: dict[int, tuple[int, ...]] = {}
    for step in range(60):
        sequence = int(rng.integers(SEQUENCES))
        text = texts.get(sequence, ())
        what = rng.integers(4)
        if what == 0:
            size = states.held(sequence, int(rng.integers(len(text) + 1)))
            states.cut(sequence, size)
            texts[sequence] = text[:size]
        elif what == 1 and not text:
            source = int(rng.integers(SEQUENCES))
            size = states.held(source, int(rng.integers(len(texts.get(source, ())) + 1)))
            states.copy(source, sequence, size)
            texts[sequence] = texts.get(source, ())[:size]
        else:
            more = (step,) * int(rng.integers(1, 4))
            slot, source = states.extend(sequence, len(text), len(more))
            assert (content[source] if source != ZEROS else ()) == text
            content[slot] = texts[sequence] = text + more
        for each, held in texts.items():
            assert states.held(each, len(held)) == len(held)


def test_earlier_states_stay_while_there_is_room():
    states = SharedStates(slots_of(1, 1 << 40))
    for begin in range(0, 160, 16):
        states.extend(0, begin, 16)
    assert [states.held(0, count) for count in (160, 159, 80, 79)] == [160, 144, 80, 0]
    assert LEAST == 4
    before = states.extend(0, 160, 1)[0]
    assert states.extend(0, 161, 1) == (before, before)  # a token changes its own state
    assert states.held(0, 161) == 160
    states.copy(0, 1, 160)
    assert states.extend(1, 160, 1)[1] != before
    states.cut(0, 150)
    with pytest.raises(EdgetuneError, match="the state after 150 tokens of a text is no longer kept; ask again"):
        states.extend(0, 150, 1)


def test_slots_are_counted_by_their_bytes():
    assert slots_of(19, 0) == 0
    assert slots_of(19, 1 << 10) == 20 + 64
    assert slots_of(19, 8 << 20) == 20 + 8
    assert slots_of(19, 1 << 30) == 20 + 4
