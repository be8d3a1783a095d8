"""Rows that are held out by default: how many, which, and that nothing asked there has been learned."""

import dataclasses
import json
import random
from collections import Counter

import numpy as np
import pair_rows
import pytest
from json_lines import write_lines

from edgetune.data import dataset, loader
from edgetune.data.dataset import divide, held_out_count, held_out_indices
from edgetune.llamacpp.tokenizer import Tokenizer
from edgetune.training.config import TrainConfig

CONFIG = TrainConfig(max_length=64)
ROWS = [{"prompt": f"turn on lamp {i}", "completion": f"lamp {i} on"} for i in range(60)]
PAIRS = [{"prompt": f"which lamp {i}", "better": f"lamp {i}", "worse": "no lamp"} for i in range(20)]


def conversation(*contents):
    roles = ("user", "assistant")
    return {"messages": [{"role": roles[i % 2], "content": content} for i, content in enumerate(contents)]}


def keys(rows):
    return Counter(json.dumps(row, sort_keys=True) for row in rows)


@pytest.mark.parametrize(("rows", "count"), [(0, 0), (1, 0), (3, 0), (4, 1), (8, 2), (15, 3), (16, 4), (49, 4), (50, 5),
                                             (60, 6), (1000, 100), (2569, 256), (10**6, 256)])
def test_a_tenth_but_enough_to_tell_and_not_too_many(rows, count):
    assert held_out_count(rows) == count
    if rows < 10**5:
        assert len(held_out_indices([f"row {i}" for i in range(rows)])) == count


@pytest.mark.parametrize("seed", range(20))
def test_the_order_of_rows_does_not_matter(seed):
    learned, held = divide(ROWS)
    shuffled = [dict(reversed(row.items())) for row in ROWS]
    random.Random(seed).shuffle(shuffled)
    also_learned, also_held = divide(shuffled)
    assert keys(also_held) == keys(held)
    assert keys(also_learned) == keys(learned)
    assert [row for row in ROWS if row in held] == held, "each side keeps the order of the file"


@pytest.mark.parametrize("seed", range(20))
def test_what_asks_the_same_is_on_one_side(seed):
    rng = random.Random(seed)
    rows = [{"prompt": f"lamp {rng.randrange(40)}", "completion": rng.choice("abc")}
            for _ in range(rng.randrange(4, 200))]
    learned, held = divide(rows)
    assert keys(learned) + keys(held) == keys(rows)
    assert {row["prompt"] for row in learned}.isdisjoint(row["prompt"] for row in held)
    assert len(held) <= held_out_count(len(rows))


def test_the_question_of_a_conversation_is_all_before_the_last_answer():
    follow_ups = [conversation("hi", "hello", f"lamp {i}", answer) for i in range(20) for answer in ("on", "off")]
    learned, held = divide(follow_ups)
    assert len(held) == 4
    assert {row["messages"][2]["content"] for row in learned}.isdisjoint(row["messages"][2]["content"] for row in held)


def test_rows_that_ask_nothing_are_divided_by_what_they_say_and_those_that_ask_the_same_are_not():
    assert len(divide([{"prompt": "", "completion": f"verse {i}"} for i in range(40)])[1]) == 4
    assert len(divide([{"text": f"verse {i}"} for i in range(40)])[1]) == 4
    assert divide([{"prompt": "say it", "completion": f"{i}"} for i in range(40)])[1] == []


# ---- through the loader ----------------------------------------------------------------------------------------------


def assert_same(there, here):
    assert (there.kind, there.truncated, there.skipped, there.digest) == (here.kind, here.truncated, here.skipped,
                                                                         here.digest)
    for a, b in zip(there.examples, here.examples, strict=True):
        assert np.array_equal(a.tokens, b.tokens)
        assert np.array_equal(a.weights, b.weights)
        assert a.group == b.group


@pytest.mark.parametrize(("rows", "parser"), [(ROWS, dataset.supervised_rows), (PAIRS, pair_rows)])
def test_both_sides_come_from_the_other_process(tiny_llama, tmp_path, rows, parser):
    """As if each side had been given by itself; examples of a pair stay together."""
    tokenizer = Tokenizer(tiny_llama)
    got = loader.load(tiny_llama, (write_lines(tmp_path / "rows.jsonl", rows), None), CONFIG, parser, hold_out=1)
    for there, side in zip(got, divide(rows), strict=True):
        assert_same(there, dataset.load_rows(side, tokenizer, max_length=64, parser=parser))
    assert got[0].rows == [], "training keeps no rows in memory"
    assert got[1].rows == divide(rows)[1]


def test_only_rows_that_teach_something_are_held_out(tiny_llama, tmp_path):
    long = [{"prompt": f"lamp {i} " * 40, "completion": "on"} for i in range(200)]
    config = dataclasses.replace(CONFIG, overflow="skip")
    learned, held = loader.load(tiny_llama, (write_lines(tmp_path / "rows.jsonl", long + ROWS), None), config,
                                hold_out=1)
    assert (len(learned.examples), len(held.examples)) == (54, 6)
    assert (learned.skipped, held.skipped) == (200, 0)


def test_with_too_few_rows_the_file_is_learned_whole(tiny_llama, tmp_path):
    path = write_lines(tmp_path / "rows.jsonl", ROWS[:3])
    whole = loader.load(tiny_llama, (path, None), CONFIG)
    again = loader.load(tiny_llama, (path, None), CONFIG, hold_out=1)
    assert whole[1] is None
    assert again[1] is None
    assert_same(again[0], whole[0])


def test_a_file_of_held_out_rows_is_taken_as_it_is(tiny_llama, tmp_path):
    """With its rows, for whoever grades answers."""
    paths = (write_lines(tmp_path / "rows.jsonl", ROWS[:40]), write_lines(tmp_path / "held.jsonl", ROWS[40:]))
    plain = loader.load(tiny_llama, paths, CONFIG)
    asked = loader.load(tiny_llama, paths, CONFIG, hold_out=1)
    for a, b in zip(plain, asked, strict=True):
        assert_same(a, b)
    assert [len(side.rows) for side in plain] == [0, 0]
    assert asked[0].rows == []
    assert asked[1].rows == ROWS[40:]


def test_a_changed_row_changes_the_digest_of_its_side_alone(tiny_llama, tmp_path):
    def digests(rows):
        path = write_lines(tmp_path / "rows.jsonl", rows)
        return [side.digest for side in loader.load(tiny_llama, (path, None), CONFIG, hold_out=1)]

    before = digests(ROWS)
    held = divide(ROWS)[1]
    corrected = [row | {"completion": "another"} if row == held[0] else row for row in ROWS]
    after = digests(corrected)
    assert after[0] == before[0]
    assert after[1] != before[1]


def test_huge_rows_do_not_come_along(tiny_llama, tmp_path):
    rows = [{"prompt": f"lamp {i}", "completion": "on", "note": "on " * 110_000} for i in range(16)]
    held = loader.load(tiny_llama, (write_lines(tmp_path / "rows.jsonl", rows), None), CONFIG, hold_out=1)[1]
    assert len(held.examples) == 4
    assert len(held.rows) == 3
    assert sum(len(json.dumps(row)) for row in held.rows) <= loader.ROWS_LIMIT


ATTEMPTS = {"completion": "on", "attempts": ["off"], "labels": [False]}
REFERENCE = {"completion": "a", "reference": "b"}
PAIR = {"chosen": [{"role": "assistant", "content": "on"}], "rejected": [{"role": "assistant", "content": "off"}]}


@pytest.mark.parametrize(("row", "key"), [(ATTEMPTS, "prompt"), (ATTEMPTS, "messages"), (REFERENCE, "prompt"),
                                          (REFERENCE, "messages"), (PAIR, "prompt")])
def test_rows_of_every_kind_that_ask_the_same_are_on_one_side(row, key):
    """What is held out was not asked in training."""
    rows = [{**row, key: [{"role": "user", "content": f"set {i // 2}"}], "number": i} for i in range(40)]
    learned, held = divide(rows)
    assert held
    assert not {row[key][0]["content"] for row in learned} & {row[key][0]["content"] for row in held}
