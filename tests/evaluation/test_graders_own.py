"""Graders that OpenAI's do not have, beside the library that checks schemas and beside answers with what they earn."""

import json

import pytest
from graded import grade, reward
from jsonschema import Draft202012Validator

from edgetune.errors import DataError, UsageError
from edgetune.evaluation.graders.base import read_grader
from edgetune.evaluation.graders.sample import Sample
from edgetune.evaluation.judge import same as is_right

SCHEMA = {"type": "object", "required": ["intent"], "additionalProperties": False, "properties": {
    "intent": {"enum": ["on", "off"]}, "lamp": {"type": "integer", "minimum": 0}}}


@pytest.mark.parametrize("value", [{"intent": "on"}, {"intent": "up"}, {"intent": "on", "lamp": 3}, {"lamp": 1}, [],
                                   {"intent": "on", "lamp": "3"}, {"intent": "off", "x": 1}])
def test_json_schema(value):
    written = {"type": "json_schema", "schema": SCHEMA}
    assert reward(written, json.dumps(value)) == Draft202012Validator(SCHEMA).is_valid(value)


def test_json_schema_of_no_json_and_of_no_schema():
    written = {"type": "json_schema", "schema": SCHEMA}
    for text in ("no JSON", "", "NaN", "[" * 100_000):
        assert grade(written, text).errors == {"sample_parse_error": True}
    with pytest.raises(UsageError, match="is no JSON schema"):
        read_grader({**written, "schema": {"type": "thing"}})
    away = {"type": "json_schema", "schema": {"$ref": "http://127.0.0.1:9/schema.json"}}
    assert grade(away, "1").errors == {"other_error": True}


@pytest.mark.parametrize(("given", "wanted", "share"), [
    ({"a": 1, "b": "x"}, {"a": 1.0, "b": "x"}, 1), ({"a": 1, "b": "y"}, {"a": 1, "b": "x"}, 1 / 2),
    ({"a": True}, {"a": 1}, 0), ({"a": 1, "c": 2}, {"a": 1, "b": 2}, 1 / 3), ({}, {"a": 1}, 0), ({}, {}, 1),
    ({"a": {"b": [1, 2]}, "c": []}, {"a": {"b": [1, 3]}, "c": []}, 2 / 3), ([1], [1, 2], 1 / 2), (3, 3, 1),
    ({"a": None}, {"a": None}, 1), ({"a": None}, {}, 0),
])
def test_json_match(given, wanted, share):
    written = {"type": "json_match", "reference": "{{ item.answer }}"}
    for answer in (wanted, json.dumps(wanted)):
        read_grader(written).check_item({"answer": answer})
        assert reward(written, json.dumps(given), {"answer": answer}) == pytest.approx(share)


def test_json_match_of_no_json():
    written = {"type": "json_match", "reference": "{{ item.answer }}"}
    assert grade(written, "no", {"answer": "{}"}).errors == {"sample_parse_error": True}
    with pytest.raises(DataError, match="is no JSON in the row"):
        read_grader(written).check_item({"answer": "no"})


@pytest.mark.parametrize(("value", "share"), [
    ({"intent": "play", "artist": "the  BEATLES", "year": 1969}, 1), ({"artist": "Beat", "year": 1969}, 1 / 2),
    ({"artist": ["Beatles", "Stones"]}, 1 / 2), ({"year": 196}, 0), ({"year": 1969.0, "on": True, "x": None}, 1),
    ({"volume": 0.5}, 1), ({"volume": 5}, 0), ({"volume": 0.50, "artist": ""}, 1 / 2), ({}, 1), ("road", 1),
])
def test_grounded(value, share):
    prompt = "Play Abbey Road by The Beatles, from 1969, at volume 0.5."
    written = {"type": "grounded", "ignore": ["intent"]}
    said = [{"role": "user", "content": prompt}, {"role": "assistant", "content": "Stones, Beat, 196"}]
    for item in ({"prompt": prompt}, {"messages": said}, {"prompt": said[:1]}):
        read_grader(written).check_item(item)
        assert reward(written, json.dumps(value), item) == pytest.approx(share)
    assert reward({**written, "source": "{{ item.text }}"}, '{"a": "x"}', {"text": "is X."}) == 1
    with pytest.raises(DataError, match="the row asks nothing"):
        read_grader(written).check_item({"text": "x"})


@pytest.mark.parametrize(("text", "reference", "wanted"), [
    ("It is 42.", "42", 1), ("40 + 2 = 42", 42, 1), ("42 or 43", 42, 0), ("1,234.5 in all", 1234.5, 1),
    ("so x = -3", -3, 1), ("5-3", 3, 1), ("1e3", 1000, 1), ("#### 7", "She has 3. #### 7", 1), (".5", 0.5, 1),
    ("3.14", 3.14159, 0), ("12,34", 34, 1),
])
def test_numeric(text, reference, wanted):
    written = {"type": "numeric", "reference": "{{item.answer}}"}
    read_grader(written).check_item({"answer": reference})
    assert reward(written, text, {"answer": reference}) == wanted


def test_numeric_with_tolerance_and_pattern():
    written = {"type": "numeric", "reference": "{{item.answer}}"}
    assert reward({**written, "tolerance": 0.01}, "3.14", {"answer": 3.1416}) == 1
    assert reward({**written, "relative_tolerance": 0.01}, "101", {"answer": 100}) == 1
    assert reward({**written, "relative_tolerance": 0.01}, "102", {"answer": 100}) == 0
    assert reward({**written, "pattern": r"answer: (\S+)"}, "answer: 7, of 9", {"answer": 7}) == 1
    assert grade({**written, "pattern": "answer: (.*)"}, "7", {"answer": 7}).errors == {"sample_parse_error": True}
    assert grade(written, "none, or 1e999", {"answer": 7}).errors == {"sample_parse_error": True}
    with pytest.raises(DataError, match="has no number in the row"):
        read_grader(written).check_item({"answer": "none"})


def test_regex():
    assert reward({"type": "regex", "pattern": r"\d+"}, "a 12") == 1
    assert reward({"type": "regex", "pattern": r"\d+", "full": True}, "a 12") == 0
    assert reward({"type": "regex", "pattern": "(?s)<think>.*</think>.+", "full": True}, "<think>\n</think>x") == 1


@pytest.mark.parametrize(("words", "wanted"), [(0, 0), (1, 0.5), (2, 1), (4, 1), (6, 0.5), (8, 0), (100, 0)])
def test_length(words, wanted):
    assert reward({"type": "length", "min": 2, "max": 4}, "word " * words) == wanted
    assert reward({"type": "length", "min": 2, "max": 4, "unit": "characters"}, "w" * words) == wanted


# ---- agreement -------------------------------------------------------------------------------------------------------


def agreed(texts, item=None, **fields):
    samples = [text if isinstance(text, Sample) else Sample(text) for text in texts]
    return read_grader({"type": "agreement", **fields}).grade(samples, [item or {"prompt": "a"}] * len(texts))


@pytest.mark.parametrize(("texts", "wanted"), [
    (["on", " on\n", "on", "off"], [0.75, 0.75, 0.75, 0]),
    (["on", "off", "on", "off"], [0, 0, 0, 0]),
    (["on", "off", "up", "down"], [0, 0, 0, 0]),
    (['{"a": 1, "b": [2]}', '{"b":[2.0],"a":1}', '{"a": 1, "b": [2, 2]}', '{"a":1,"b":[2]}'], [0.75, 0.75, 0, 0.75]),
    (['{"a": true}', '{"a": 1}', '{"a": "1"}', '{"a": 1.0}'], [0, 0.5, 0, 0.5]),
    (["1,234", "1234.0", "1.234e3", "+1234"], [1, 1, 1, 1]),
    (["42 lamps", "42", "42", "42"], [0, 0.75, 0.75, 0.75]),
    (["", " ", "", "on"], [0, 0, 0, 0.25]),
    (["null", "null", "nothing", "null"], [0.75, 0.75, 0, 0.75]),
])
def test_agreement(texts, wanted):
    """By the rules of `same`: what agrees is equal there, too."""
    found = agreed(texts, threshold=0.25)
    assert [each.reward for each in found] == wanted
    most = [text for text, reward in zip(texts, wanted, strict=True) if reward]
    assert all(is_right(most[0], text) or float(most[0].replace(",", "")) == float(text.replace(",", ""))
               for text in most)
    above = [reward if reward >= 0.75 else 0 for reward in wanted]
    assert [each.reward for each in agreed(texts)] == above


def test_agreement_is_among_the_answers_to_a_row():
    grader = read_grader({"type": "agreement", "threshold": 0.5})
    items = [{"prompt": f"{i % 2}"} for i in range(8)]
    texts = ["a", "b", "a", "c", "d", "b", "a", "b"]
    assert [each.reward for each in grader.grade([Sample(text) for text in texts], items)] == [
        0.75, 0.75, 0.75, 0, 0, 0.75, 0.75, 0.75]
    alone, *others = grader.grade([Sample("on")] * 3, [{"prompt": "b"}, {"prompt": "a"}, {"prompt": "a"}])
    assert (alone.reward, alone.errors) == (0, {"other_error": "there is no other answer to agree with"})
    assert [each.reward for each in others] == [1, 1]


def test_agreement_of_a_part_and_of_answers_that_were_cut():
    texts = ["so it is #### 4", "2 and 2, #### 4.0", "4", Sample("so it is #### 4", finish_reason="length")]
    assert [each.reward for each in agreed(texts, threshold=0.5, pattern=r"#### (\S+)")] == [0.5, 0.5, 0, 0]
    assert [each.reward for each in agreed(["<x>on", "<y>on"], pattern="on|off")] == [1, 1]
    both = {"type": "multi", "calculate_output": "most * form", "graders": {
        "most": {"type": "agreement"}, "form": {"type": "json_schema", "schema": {"type": "object"}}}}
    found = read_grader(both)
    assert found.compares
    assert [each.reward for each in found.grade([Sample("off")] * 2, [{}] * 2)] == [0, 0]
    assert [each.reward for each in found.grade([Sample("{}")] * 2, [{}] * 2)] == [1, 1]
    assert not read_grader(both["graders"]["form"]).compares
