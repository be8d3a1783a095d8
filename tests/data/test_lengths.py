"""edgetune.data.lengths: what a plan is told of rows, beside the micro-batches that are made of them."""

import numpy as np
from examples import examples
from hypothesis import given
from hypothesis import strategies as st

from edgetune.data.lengths import Lengths, Unit, lengths_of, read_lengths
from edgetune.data.packing import Example, collate
from edgetune.data.trees import micro_batches


def example(tokens, learned, group=0):
    """Whose last `learned` tokens are supervised."""
    weights = np.zeros(len(tokens), np.float32)
    weights[max(len(tokens) - learned, 1):] = 1
    return Example(np.array(tokens, np.int32), weights, group)


row = st.tuples(st.lists(st.integers(0, 2), min_size=1, max_size=9), st.integers(0, 9))
groups_of_rows = st.lists(st.lists(row, min_size=1, max_size=4), min_size=1, max_size=5)


@examples(100)
@given(groups_of_rows, st.lists(st.integers(0, 2), max_size=4), st.data())
def test_no_batch_is_larger_than_said(found, stem, data):
    groups = [[example(stem + tokens, learned, number) for tokens, learned in rows]
              for number, rows in enumerate(found, 1)]
    examples = [one for group in groups for one in group]
    known = lengths_of(examples)
    assert [unit.computed for unit in known.units] == [collate(group).tokens.size for group in groups]
    assert known.longest == max(one.tokens.size for one in examples)
    assert known.shared >= len(stem) or len(examples) == 1
    taken = data.draw(st.lists(st.sampled_from(range(len(groups))), min_size=1, unique=True))
    batch = [one for i in taken for one in groups[i]]
    assert len(micro_batches(batch, known.largest(len(taken)))) == 1
    micro_batches(batch, known.longest_group)


def test_what_is_computed_of_rows_behind_an_instruction():
    """Eight rows of 60 behind 300: at once, two by two, each alone; what a run computes is the same."""
    examples = [example([*range(300), *range(1000 * i, 1000 * i + 60)], 60) for i in range(1, 9)]
    known = lengths_of(examples)
    assert known == Lengths((Unit(360, 360, 360, 0, 60),) * 8, 300)
    assert known.largest(8) == 780
    for tokens in (780, 420, 360):
        computed = sum(batch.tokens.size for batch in micro_batches(examples, tokens))
        assert known.computed_share(8, tokens) * 8 * 360 == computed
    apart = lengths_of(examples, share=False)
    assert (apart.largest(8), apart.computed_share(8, 780)) == (8 * 360, 1)


def test_what_is_computed_of_answers_to_a_prompt():
    """Eight answers of 96 to each prompt of 192, a group: 960 tokens of 2,304."""
    examples = [example([*range(1000 * g, 1000 * g + 192), *range(9000 + 96 * i, 9096 + 96 * i)], 96, g)
                for g in (1, 2) for i in range(8)]
    known = lengths_of(examples)
    assert known.units == (Unit(288, 2304, 960, 192, 768),) * 2
    assert known.longest_group == 960
    assert lengths_of(examples, share=False).longest_group == 2304
    assert lengths_of(examples[:8], examples[:8]).units == known.units  # groups of two parts stay two


def test_lengths_alone_share_nothing():
    known = read_lengths([10, 2000, (30, 40)], 256)
    assert known == Lengths((Unit(10, 10, 10), Unit(256, 256, 256), Unit(40, 70, 70)))
    assert read_lengths(known, 20) is known
    assert Lengths().computed_share(8, 100) == 1
