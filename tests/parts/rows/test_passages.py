"""Rows with passages: the one with the answer stands among others, or is missing in the share that was asked for."""

import json
from pathlib import Path

import pytest

pytest.importorskip("edgetune.parts.documents")

from commands import run
from indexes import small_index
from json_lines import read_lines, write_lines

from edgetune.errors import UsageError
from edgetune.parts.documents.passages import ASKING
from edgetune.parts.documents.search import Index
from edgetune.parts.rows.options import PassageOptions
from edgetune.parts.rows.passages import ALONE, NOWHERE, make_with_passages

THINGS = ("lamp", "oven", "kite", "boat", "drum", "fork")
ROWS = [{"prompt": f"the {thing}", "completion": f"{thing} {number * 11}"} for number, thing in enumerate(THINGS)]


@pytest.fixture
def index(tmp_path):
    texts = {f"{thing}.txt": f"the {thing}: {thing} {number * 11}\n" for number, thing in enumerate(THINGS)}
    with Index(small_index(tmp_path / "index", texts), 1) as found:
        yield found


@pytest.fixture
def data(tmp_path):
    return write_lines(tmp_path / "rows.jsonl", ROWS)


def test_the_passage_with_the_answer_stands_among_others(index, data):
    made = make_with_passages(data, index, PassageOptions(count=3, without=0.0))
    assert (made.read, len(made.rows)) == (6, 6)
    for row, made_row in zip(ROWS, made.rows, strict=True):
        question, answer = made_row["messages"]
        assert answer == {"role": "assistant", "content": row["completion"]}
        assert question["content"].endswith(f"{ASKING}\n\nQuestion: {row['prompt']}")
        assert question["content"].count("</passage ") == 3
        assert f": {row['completion']}\n" in question["content"]
    assert make_with_passages(data, index, PassageOptions(count=3, without=0.0)).rows == made.rows
    places = {row["messages"][0]["content"].index(f": {each['completion']}\n")
              for row, each in zip(made.rows, ROWS, strict=True)}
    assert len(places) > 2  # in any order


@pytest.mark.dev
def test_a_share_is_without_it(index, tmp_path):
    data = write_lines(tmp_path / "many.jsonl", ROWS * 50)
    made = make_with_passages(data, index, PassageOptions(count=2, without=0.2))
    without = sum(f": {row['messages'][1]['content']}\n" not in row["messages"][0]["content"] for row in made.rows)
    assert len(made.rows) == 300
    assert 40 <= without <= 80  # of 300 at 0.2: more than three standard deviations on either side
    other = make_with_passages(data, index, PassageOptions(count=2, without=0.2, seed=1))
    assert other.rows != made.rows


def test_conversations_keep_their_earlier_turns(index, tmp_path):
    turns = [{"role": "system", "content": "be short"}, {"role": "user", "content": "hi"},
             {"role": "assistant", "content": "hello"}, {"role": "user", "content": "the kite"}]
    data = write_lines(tmp_path / "talk.jsonl", [{"messages": [*turns, {"role": "assistant", "content": "kite 22"}]}])
    [row] = make_with_passages(data, index, PassageOptions(without=0.0)).rows
    assert row["messages"][:3] == turns[:3]
    assert row["messages"][3]["content"].endswith("Question: the kite")


def test_rows_that_the_index_does_not_answer_are_dropped(index, tmp_path):
    data = write_lines(tmp_path / "other.jsonl", [{"prompt": "the moon", "completion": "cheese"}, ROWS[0]])
    made = make_with_passages(data, index, PassageOptions())
    assert (len(made.rows), dict(made.dropped)) == (1, {NOWHERE: 1})
    assert dict(make_with_passages(data, index, PassageOptions(count=9)).dropped) == {NOWHERE: 1, ALONE: 1}
    with pytest.raises(UsageError, match="count is 1"):
        make_with_passages(data, index, PassageOptions(count=1))


def test_the_command(index, data, tmp_path):
    out = tmp_path / "out.jsonl"
    report = json.loads(run("data", "make", "passages", data, index.path, "-o", out, "--threads", 1, "--json"))
    assert (report["rows"], report["read"], len(read_lines(out))) == (6, 6, 6)
    assert "exists" in run("data", "make", "passages", data, index.path, "-o", out, code=2)
    assert "there is no index" in run("data", "make", "passages", data, Path("none"), "-o", tmp_path / "b", code=2)
