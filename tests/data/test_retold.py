"""Rows told again with other values: what is replaced, and that question and answer still say the same."""

from __future__ import annotations

import json

import numpy as np
import pytest

from edgetune.data.retold import Value, told_again, value_in, values_of

ROWS = [("Play Blue by Ann", {"intent": "play", "slots": {"song": "blue", "by": ["Ann"]}}),
        ("play  Red Hot by Bo and Cem", {"intent": "play", "slots": {"song": "red hot", "by": ["Bo", "Cem"]}}),
        ("stop Green", {"intent": "stop", "slots": {"song": "green"}})]
SONGS = [Value("Blue", "blue"), Value("Red Hot", "red hot"), Value("Green", "green")]
NAMES = [Value(name, name) for name in ("Ann", "Bo", "Cem")]
SONG = ("slots", "song")
BY = ("slots", "by", None)


def drawn(question: str, answer: str, values: dict, times: int = 200) -> set[tuple[str, str]]:
    rng = np.random.default_rng(0)
    return {told_again(question, answer, values, rng) for _ in range(times)}


def test_values_are_those_that_stand_in_their_questions():
    assert values_of((question, json.dumps(answer)) for question, answer in ROWS) == {SONG: SONGS, BY: NAMES}


def test_a_field_of_few_values_or_of_none_that_are_said_is_left():
    labels = [(f"it is {'good' if i % 2 else 'bad'} {i}", json.dumps({"is": ["bad", "good"][i % 2]})) for i in range(9)]
    assert values_of(labels) == {}  # two words in nine rows: all that there are
    assert values_of([(f"what is {i}?", json.dumps({"is": f"thing {i}"})) for i in range(9)]) == {}
    assert values_of([("one", '"one"'), ("two", "two"), ("three", "3"), ("four", "{")]) == {}


def test_question_and_answer_change_together():
    question, answer = ROWS[1][0], json.dumps(ROWS[1][1])
    found = drawn(question, answer, {SONG: SONGS, BY: NAMES})
    assert ("play  Blue by Ann and Cem", json.dumps(
        {"intent": "play", "slots": {"song": "blue", "by": ["Ann", "Cem"]}})) in found
    assert (question, answer) in found
    assert len(found) > 6
    for asked, told in found:
        slots = json.loads(told)["slots"]
        assert asked.casefold() == f"play  {slots['song']} by {' and '.join(slots['by'])}".casefold()
        assert len(set(slots["by"])) == 2  # a name is not said twice


@pytest.mark.parametrize(("question", "answer"), [
    ("play blue blue", {"slots": {"song": "blue"}}),  # which of both?
    ("play it", {"slots": {"song": "blue"}}),
    ("play bluebird", {"slots": {"song": "blue"}}),
    ("play blue", {"song": "blue"})])  # another place
def test_what_is_not_said_once_is_left(question, answer):
    assert drawn(question, json.dumps(answer), {SONG: SONGS}) == {(question, json.dumps(answer))}


def test_a_value_within_another_does_not_break_it():
    """If "1999" were replaced, "1999 hits" would stand there no more."""
    values = {("year",): [Value("1999", "1999"), Value("2001", "2001")], ("what",): [Value("1999 hits", "1999 hits")]}
    row = ("play 1999 hits", json.dumps({"year": "1999", "what": "1999 hits"}))
    assert drawn(*row, values) == {row}


@pytest.mark.parametrize("style", [{}, {"separators": (",", ":")}, {"indent": 2}, {"ensure_ascii": False}])
def test_json_is_written_as_it_was(style):
    answer = {"slots": {"song": "blue", "no": 3, "é": None}}
    found = drawn("play blue", json.dumps(answer, **style), {SONG: SONGS})
    assert ("play Green", json.dumps({"slots": {"song": "green", "no": 3, "é": None}}, **style)) in found
    odd = '{"slots":  {"song": "blue"}}'
    assert drawn("play blue", odd, {SONG: SONGS}) == {("play blue", odd)}


def test_a_value_is_said_as_the_question_spells_it():
    assert value_in("Play RED\thot now", "red hot") == Value("RED\thot", "red hot")
    assert value_in("Play red hot and red hot", "red hot") is None
    assert value_in("Play (a+b)* now", "(a+b)*") == Value("(a+b)*", "(a+b)*")
    assert value_in("Play", " ") is None
    assert value_in("Play blue", " blue") is None  # as a model may say
