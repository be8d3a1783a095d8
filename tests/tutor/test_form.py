"""What labelled answers have in common: which checks are made of them, and which answers keep them."""

from __future__ import annotations

import json

import pytest
from asked import question

from edgetune.tutor.form import common_form, kept
from edgetune.tutor.questions import Question

ROOMS = ("kitchen", "hall", "attic", "cellar", "porch", "study")


def command(i: int) -> Question:
    """A light is switched in a room, or a room heated to a number; the room is said."""
    room = ROOMS[i % len(ROOMS)]
    if i % 2:
        return question(f"please {i} light the {room}", json.dumps({"intent": "light", "slots": {"room": room}}))
    slots = {"room": room, "degrees": i}
    return question(f"heat the {room} to {i}", json.dumps({"intent": "heat", "slots": slots}))


COMMANDS = [command(i) for i in range(24)]
ASKED = question("heat the barn to 7 at dusk")


@pytest.mark.parametrize(("answer", "keeps"), [
    ({"intent": "heat", "slots": {"room": "barn", "degrees": 7}}, True),  # no row has it, but rooms are copied
    ({"intent": "heat", "slots": {"room": "attic", "degrees": 7}}, True),
    ({"intent": "heat", "slots": {"room": "cabin", "degrees": 7}}, False),  # neither said nor in a row
    ({"intent": "heat", "slots": {"degrees": 7}}, True),
    ({"intent": "heat", "slots": {"degrees": 7.0}}, True),
    ({"intent": "heat", "slots": {"degrees": 8}}, False),  # nobody said so
    ({"intent": "cool", "slots": {"degrees": 7}}, False),  # no row has this intent
    ({"intent": "light", "slots": {"degrees": 7}}, False),  # this field never comes with it
    ({"intent": "heat", "slots": {"when": "dusk"}}, False),  # no row has this field
    ({"intent": "heat", "degrees": 7}, False),  # a field elsewhere is another field
    ([{"intent": "heat"}], False),
    ("heat", False)])
def test_an_answer_keeps_what_rows_keep(answer: object, keeps: bool) -> None:
    form = common_form(COMMANDS)
    assert form is not None
    assert form.checks == {"fields", "values", "grounded"}
    text = json.dumps(answer)
    assert form.keeps(ASKED, text) == keeps
    assert kept(form, ASKED, ["", text, "no JSON"]) == ([1] if keeps else [])
    assert kept(None, ASKED, ["", text]) == [0, 1]


def test_a_check_that_most_rows_break_is_none() -> None:
    """Values that are not in what is asked; fields of which each row has its own."""
    said = [question(f"which city is {i}?", json.dumps({"city": f"town {i}"})) for i in range(12)]
    form = common_form(said)
    assert form is not None
    assert form.checks == {"fields", "values"}
    assert form.keeps(ASKED, '{"city": "elsewhere"}')
    assert not form.keeps(ASKED, '{"river": "elsewhere"}')
    own = [question(f"what is {i}?", json.dumps({f"key {i}": f"what {i}"})) for i in range(12)]
    form = common_form(own)
    assert form is not None
    assert "fields" not in form.checks
    assert form.keeps(ASKED, '{"another": true}')


def test_labels_that_are_no_json() -> None:
    """Two labels, of which both occur often, are all; free text has no form but that it is text."""
    form = common_form([question(f"mail {i}", "spam" if i % 2 else "ham") for i in range(12)])
    assert form is not None
    assert [form.keeps(ASKED, text) for text in ("spam", "ham", "eggs", '{"a": "spam"}', "")] == [True, True, False,
                                                                                                 False, False]
    free = common_form([question(f"tell {i}", f"a story, the {i}th") for i in range(12)])
    assert free is not None
    assert free.keeps(ASKED, "once upon a time")
    assert not free.keeps(ASKED, '{"story": "once"}')


def test_few_rows_have_no_form() -> None:
    assert common_form(COMMANDS[:7]) is None
    assert common_form([]) is None
