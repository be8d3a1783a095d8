"""Corrections in a chat, by patterns."""

import csv
from pathlib import Path

import pytest

from edgetune.data.remarks import remark_of, stated_answer


def read_chats():
    """Made up: some were written before the patterns, some before their revision, and some after it."""
    path = Path(__file__).parents[2] / "lab" / "data" / "remarks.tsv"
    with path.open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file, delimiter="\t", quoting=csv.QUOTE_NONE))


def test_corrections_are_found_and_few_others():
    """Among the chats that were written after the patterns, and among all."""
    every = read_chats()
    for rows, least, most in (([row for row in every if row["written"] == "after"], 0.75, 0.1), (every, 0.8, 0.1)):
        said = [(row["correction"] == "1", remark_of(row["answer"], row["remark"]) is not None) for row in rows]
        found = sum(both for is_one, says in said if (both := is_one and says))
        alarms = sum(says and not is_one for is_one, says in said)
        corrections = sum(is_one for is_one, _ in said)
        assert found >= least * corrections
        assert alarms <= most * (len(said) - corrections)


@pytest.mark.parametrize(("answer", "remark", "right"), [
    ("Sydney.", "That’s wrong, it is Canberra.", "Canberra"),
    ("It is 19.5.", "It should be 20.5, I think.", "20.5, I think"),
    ("Katze", "Nicht Katze, sondern Hund.", "Hund"),
    ("Zurich.", "C’est faux, c’est Berne.", "Berne"),
    ("The lamp is on.", "no, I meant the fan", ""),
])
def test_the_right_answer(answer, remark, right):
    found = remark_of(answer, remark)
    assert found is not None
    assert found.right == right


@pytest.mark.parametrize(("answer", "remark"), [
    ("Shall I add milk?", "No"), ("Milk?", "no, bread"), ("Done.", ""), ("Done.", "wrong " * 200), ("Done.", "Wrong?"),
    ("Done.", "No, it is fine, thanks"), ("Done.", "Not rock, jazz"),
])
def test_no_correction(answer, remark):
    assert remark_of(answer, remark) is None


def test_comments():
    assert stated_answer("Wrong. The right answer is 42.") == "42"
    assert stated_answer("no, it should be Canberra") == "Canberra"
    assert stated_answer("too long") == stated_answer("") == ""
