"""The schema of rows' answers: all of them are valid under it, and a grammar can hold to it."""

import json
from importlib.resources import files

import pytest

pytest.importorskip("jsonschema_rs")

import jsonschema_rs
from own_sets import SETS

from edgetune.data.answer_schema import derive
from edgetune.llamacpp.json_schema import ANY_ORDER, grammar_of
from edgetune.llamacpp.states import network_of


def row(answer, prompt="a"):
    return {"prompt": prompt, "completion": json.dumps(answer)}


def test_keys_types_and_few_values_are_those_that_occurred():
    answers = [{"device": ["lamp", "door"][i % 2], "note": f"text {i}", "level": i, "list": [0.5] * (i % 3),
                **({"on": None if i % 4 else True} if i % 2 else {})} for i in range(12)]
    assert derive([row(answer) for answer in answers]) == {
        "type": "object", "additionalProperties": False, "required": ["device", "note", "level", "list"],
        "properties": {
            "device": {"type": "string", "enum": ["door", "lamp"]}, "note": {"type": "string", "maxLength": 64},
            "level": {"type": "integer"}, "list": {"type": "array", "items": {"type": "number"}, "maxItems": 8},
            "on": {"type": "null"}}}


@pytest.mark.parametrize("other", [{"prompt": "a", "completion": "yes"}, {"prompt": "a", "completion": "3"}, "a text",
                                   {"text": "{}"}, row({"n": 10**20}), {"messages": [
                                       {"role": "user", "content": "a"}, {"role": "assistant", "content": "Hello."}]}])
def test_one_answer_of_another_kind_and_there_is_no_schema(other):
    rows = [row({"a": 1}, f"{i}") for i in range(20)]
    assert derive(rows)
    assert derive([*rows, other]) is None
    assert derive(rows[:3]) is None  # too few to say


def test_a_row_that_comes_several_times_says_no_more_than_once():
    """A lesson repeats each: every value would seem to be a frequent one."""
    rows = [row({"artist": f"artist {i}"}, f"{i}") for i in range(12)]
    assert derive(rows * 6) == derive(rows) == {
        "type": "object", "properties": {"artist": {"type": "string", "maxLength": 64}}, "required": ["artist"],
        "additionalProperties": False}
    assert derive(rows[:7] * 6) is None
    few = derive([row({"label": "ab"[i % 2]}, f"{i}") for i in range(9)])
    assert few is not None
    assert "enum" not in few["properties"]["label"]  # nine answers do not say that there are two labels


@pytest.mark.parametrize("question", ["{who} has the {thing}.", "From what {who} took: who has it?"])
@pytest.mark.parametrize("chat", [False, True])
def test_a_name_that_the_question_says_is_not_one_of_those_that_occurred(question, chat):
    said = [(["Ann", "Bo", "Cem"][i % 3], ["lent", "lost"][i % 2], f"{i}") for i in range(24)]
    rows = [row({"who": who, "what": what}, f"{question.format(who=who.upper(), thing=thing)} {thing}")
            for who, what, thing in said]
    if chat:
        rows = [{"messages": [{"role": "system", "content": "Lent or lost, Ann, Bo or Cem?"},
                              {"role": "user", "content": each["prompt"]},
                              {"role": "assistant", "content": each["completion"]}]} for each in rows]
    found = derive(rows)
    assert found is not None
    assert found["properties"] == {"who": {"type": "string", "maxLength": 64},
                                   "what": {"type": "string", "enum": ["lent", "lost"]}}


def test_a_value_is_chosen_where_the_question_tells_all_of_them():
    rows = [row({"mood": ["good", "bad"][i % 2]}, f"Good or bad? It is {'so'[i % 2]}. {i}") for i in range(24)]
    found = derive(rows)
    assert found is not None
    assert found["properties"]["mood"] == {"type": "string", "enum": ["bad", "good"]}


def test_keys_come_in_the_order_that_all_rows_have():
    rows = [row(dict(list({"a": i, "b": i, "c": i, "d": i}.items())[i % 3:][:2]), f"{i}") for i in range(12)]
    found = derive(rows)
    assert found is not None
    assert list(found["properties"]) == ["a", "b", "c", "d"]  # no row has all of them
    assert found["required"] == []
    assert network_of(grammar_of(found))


def test_keys_that_rows_have_in_different_orders_come_in_any():
    rows = [row({"intent": "x", "slots": dict(sorted({"a": i, "b": i, "c": i}.items(), reverse=bool(i % 2)))}, f"{i}")
            for i in range(12)]
    found = derive(rows)
    assert found is not None
    slots = found["properties"]["slots"]
    assert slots[ANY_ORDER]
    assert "required" not in slots
    assert found["required"] == ["intent", "slots"]
    check_all(found, rows)


@pytest.mark.parametrize("name", SETS)
def test_held_out_answers_are_valid_under_the_schema_of_those_learned(name):
    """Values that the schema would take from a model that knows better would cost exact answers."""
    schema = derive(SETS[name].rows("train"))
    assert (schema is None) == (name in ("tickets", "library", "log_lines"))
    if schema is not None:
        assert any("enum" in part for part in schema["properties"].values())
        check_all(schema, SETS[name].rows("train") + SETS[name].rows("heldout"))


def test_the_demonstrations_answers_are_valid():
    train, held = ([json.loads(line) for line in files("edgetune.demo").joinpath(f"data/home_{part}.jsonl").read_text(
        encoding="utf-8").splitlines()] for part in ("train", "heldout"))
    check_all(derive(train), train + held)


def check_all(schema, rows):
    validator = jsonschema_rs.validator_for(schema)
    for each in rows:
        validator.validate(json.loads(each["completion"] if "completion" in each else each["messages"][-1]["content"]))
    assert network_of(grammar_of(schema))
