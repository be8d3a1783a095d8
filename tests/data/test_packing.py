"""Examples to flat batches and packs, in an order that only the seed decides; what a plan is told of their lengths."""

from itertools import chain

import numpy as np
import pytest
from counting import answered
from examples import examples
from hypothesis import given
from hypothesis import strategies as st
from sometimes import mostly_slow

from edgetune.data.dataset import load
from edgetune.data.lengths import Lengths, Unit, lengths_of, read_lengths
from edgetune.data.packing import Example, collate, order, pack
from edgetune.data.trees import micro_batches
from edgetune.errors import UsageError
from edgetune.llamacpp.tokenizer import Tokenizer


def example_of(n, seed=0):
    rng = np.random.default_rng([n, seed])
    weights = (rng.random(n) < 0.5).astype(np.float32)
    weights[0] = 0
    return Example(rng.integers(0, 99, n, dtype=np.int32), weights)


def test_collate_is_documents_one_after_another():
    examples = [example_of(n) for n in (5, 2, 1, 7)]
    batch = collate(examples, share=False)
    t = 0
    entries = []
    for example in examples:
        for i in range(example.tokens.size):
            assert batch.tokens[t] == example.tokens[i]
            assert (batch.positions[t], batch.ends[t]) == (i, t - i + example.tokens.size)
            if i + 1 < example.tokens.size and example.weights[i + 1]:
                entries.append((t, example.tokens[i + 1], example.weights[i + 1]))
            t += 1
    assert [*zip(batch.supervised, batch.targets, batch.supervised_weights, strict=True)] == entries
    assert batch.supervised.size == sum(int(example.weights.sum()) for example in examples)
    arrays = (batch.tokens, batch.positions, batch.ends)
    assert [(array.shape, array.dtype) for array in arrays] == [((t,), np.int32)] * 3
    assert (batch.supervised.dtype, batch.targets.dtype, batch.supervised_weights.dtype) == (np.int64, np.int32,
                                                                                           np.float32)


def test_micro_batches_take_what_fits():
    examples = [example_of(n) for n in (4, 4, 8, 1, 6, 2)]
    batches = micro_batches(examples, 8, share=False)
    assert [batch.tokens.size for batch in batches] == [8, 8, 7, 2]
    assert np.concatenate([batch.tokens for batch in batches]).tolist() == collate(examples, False).tokens.tolist()
    assert micro_batches([], 8) == []
    with pytest.raises(UsageError, match="a row has 8 tokens and a micro-batch takes 7"):
        micro_batches(examples, 7)


@given(lengths=st.lists(st.integers(1, 40), max_size=60), extra=st.integers(0, 30))
def test_packs_hold_every_row_once(lengths, extra):
    limit = max(lengths, default=1) + extra
    groups = pack([example_of(n) for n in lengths], limit)
    assert sorted(chain(*groups)) == list(range(len(lengths)))
    assert all(0 < sum(lengths[i] for i in group) <= limit for group in groups)
    totals = sorted(sum(lengths[i] for i in group) for group in groups)
    assert len(totals) < 2 or totals[0] + totals[1] > limit  # no two groups fit into one
    with pytest.raises(UsageError, match="and a pack takes 40"):
        pack([example_of(3), example_of(41)], 40)


@pytest.mark.slow
@pytest.mark.parametrize("rows", mostly_slow([2_000, 13_484], [2_000]))
def test_packing_snips_wastes_under_5_percent(rows, smollm2, shared_data, tmp_path):
    lines = (shared_data / "snips_train.jsonl").read_text().splitlines(keepends=True)
    (tmp_path / "rows.jsonl").write_text("".join(lines[:rows]))
    tokenizer = Tokenizer(smollm2)
    dataset = load(tmp_path / "rows.jsonl", tokenizer, max_length=512)
    tokenizer.close()
    assert (len(dataset.examples), dataset.truncated, dataset.skipped) == (rows, 0, 0)
    for max_length in (256, 384, 512, 1024):
        groups = pack(dataset.examples, max_length)
        assert groups == pack(dataset.examples, max_length)
        assert 1 - dataset.tokens / (len(groups) * max_length) < 0.05


def test_order_is_repeatable():
    first = order(100, epoch=0, seed=7, shuffle=True)
    assert sorted(first.tolist()) == list(range(100))
    assert first.tolist() == order(100, epoch=0, seed=7, shuffle=True).tolist()
    assert first.tolist() != order(100, epoch=1, seed=7, shuffle=True).tolist()
    assert first.tolist() != order(100, epoch=0, seed=8, shuffle=True).tolist()
    assert order(5, epoch=3, seed=7, shuffle=False).tolist() == [0, 1, 2, 3, 4]
    assert order(4, epoch=0, seed=0).tolist() == order(4, epoch=0, seed=0, shuffle=True).tolist()


row = st.tuples(st.lists(st.integers(0, 2), min_size=1, max_size=9), st.integers(0, 9))
groups_of_rows = st.lists(st.lists(row, min_size=1, max_size=4), min_size=1, max_size=5)


@examples(100)
@given(groups_of_rows, st.lists(st.integers(0, 2), max_size=4), st.data())
def test_no_batch_is_larger_than_said(found, stem, data):
    groups = [[answered(stem + tokens, learned, number) for tokens, learned in rows]
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
    examples = [answered([*range(300), *range(1000 * i, 1000 * i + 60)], 60) for i in range(1, 9)]
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
    examples = [answered([*range(1000 * g, 1000 * g + 192), *range(9000 + 96 * i, 9096 + 96 * i)], 96, g)
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
