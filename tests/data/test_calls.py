"""Calls that a row's tools do not take are refused, with the value and the way out; a validator agrees."""

import json
from typing import Any

import jsonschema_rs
import pytest
import templates
from commands import run
from examples import examples
from hypothesis import given
from hypothesis import strategies as st
from tiny import write_tiny

from edgetune.data import preferences, ranked, unpaired
from edgetune.data.calls import check_calls
from edgetune.data.rows import check_learnable, examples_of
from edgetune.errors import DataError

LAMP = {"type": "object", "required": ["room"], "properties": {
    "room": {"type": "string", "enum": ["hall", "attic"]}, "level": {"type": ["integer", "null"]},
    "domain": {"type": "array", "items": {"enum": ["light", "fan"]}}, "warm": {"type": "boolean"},
    "at": {"anyOf": [{"type": "number"}, {"type": "string"}]},
    "from": {"type": "object", "required": ["x"], "properties": {"x": {"allOf": [{"type": "number"}]}}}}}
TOOLS = [{"type": "function", "function": {"name": "lamp", "description": "Set a lamp", "parameters": LAMP}},
         {"type": "function", "function": {"name": "time"}},
         {"name": "free", "parameters": {"type": "object", "properties": {}, "additionalProperties": True}}]
WAY_OUT = "; mend the call, or the tool in tools; an answer of weight 0 is not learned"


def calling(name: str, arguments: Any, **more: Any) -> dict[str, Any]:
    calls = [{"type": "function", "function": {"name": name, "arguments": arguments}}]
    return {"role": "assistant", "content": None, "tool_calls": calls, **more}


def row_of(*answers: dict[str, Any], tools: Any = TOOLS) -> dict[str, Any]:
    return {"messages": [{"role": "user", "content": "light"}, *answers], "tools": tools}


@pytest.mark.parametrize(("name", "arguments", "says"), [
    ("lamps", {}, "messages[1] calls 'lamps', which is none of the row's tools (lamp, time, free); name one of them, "
                  "or add it to tools; an answer of weight 0 is not learned"),
    ("lamp", {"room": "hall", "colour": "red"}, "messages[1] calls lamp with colour 'red', which it does not take (it "
                                                "takes room, level, domain, warm, at, from)" + WAY_OUT),
    ("lamp", {"level": 3},
     "messages[1] calls lamp without room, which it requires (it takes room, level, domain, warm, at, from)" + WAY_OUT),
    ("lamp", {"room": "cellar"},
     "messages[1] calls lamp with room 'cellar', which must be one of hall, attic" + WAY_OUT),
    ("lamp", {"room": "hall", "level": "3"},
     "messages[1] calls lamp with level '3', which must be of type integer or null" + WAY_OUT),
    ("lamp", {"room": "hall", "level": True}, "with level True, which must be of type integer or null"),
    ("lamp", {"room": "hall", "level": 2.5}, "with level 2.5"),
    ("lamp", {"room": "hall", "warm": 1}, "with warm 1, which must be of type boolean"),
    ("lamp", {"room": "hall", "domain": "light"}, "with domain 'light', which must be of type array"),
    ("lamp", {"room": "hall", "domain": ["light", "sun"]}, "with domain 'sun', which must be one of light, fan"),
    ("lamp", {"room": "hall", "at": []}, "with at [], which is none of what at takes"),
    ("lamp", {"room": "hall", "from": {}}, "without from.x, which it requires (it takes x)"),
    ("lamp", {"room": "hall", "from": {"x": 1, "y": 2}}, "with from.y 2, which it does not take (it takes x)"),
    ("lamp", {"room": "hall", "from": {"x": "far"}}, "with from.x 'far', which must be of type number"),
    ("lamp", {"room": "hall", "level": 1, "warm": None}, "with warm None"),  # as a table fills what a row lacks
    ("lamp", ["hall"], "with ['hall'] where an object belongs"),
    ("lamp", '{"room": "cellar"}', "with room 'cellar'"),
    ("lamp", '{"room": ', "the arguments of tool call 'lamp' are not JSON"),
])
def test_a_call_is_refused(name, arguments, says):
    with pytest.raises(DataError) as refused:
        check_learnable(row_of(calling(name, arguments)))
    assert says in str(refused.value)
    written = [f'<tool_call>\n{{"name": "{name}", "arguments": {json.dumps(arguments)}}}\n</tool_call>',
               json.dumps([{"name": name, "parameters": arguments}])]
    for text in written if isinstance(arguments, dict) else ():
        message = row_of({"role": "assistant", "content": text})
        completion = {"prompt": "light", "completion": text, "tools": TOOLS}
        for row, place in ((message, "messages[1]"), (completion, "the completion")):
            with pytest.raises(DataError) as again:
                check_learnable(row)
            assert str(again.value) == str(refused.value).replace("messages[1]", place)


@pytest.mark.parametrize("row", [
    row_of(calling("lamp", {"room": "hall", "level": None, "domain": ["fan"], "at": "now", "from": {"x": 0.5}})),
    row_of(calling("lamp", {"room": "attic", "level": 2.0}), {"role": "tool", "content": "ok"},
           {"role": "assistant", "content": "It is on."}),
    row_of(calling("time", {"zone": "UTC"})), row_of(calling("free", {"a": 1})),
    row_of(calling("lamps", {}, weight=0), {"role": "tool", "content": "no such tool"}, calling("time", {})),
    row_of(calling("lamps", {}), tools=None),
    row_of({"role": "assistant", "content": '{"name": "Ann", "age": 3}'}),
    row_of({"role": "assistant", "content": "<tool_call>\n<function=lamp>\n</function>\n</tool_call>"}),
], ids=str)
def test_what_is_learned(row):
    assert check_learnable(row) == "messages"


def test_tags_without_json_are_refused():
    with pytest.raises(DataError, match=r"has a call that is not JSON \('\{\"name\": lamp\}'\); write"):
        check_learnable(row_of({"role": "assistant", "content": '<tool_call>{"name": lamp}</tool_call>'}))


VALUES = st.recursive(st.none() | st.booleans() | st.integers(-2, 2) | st.floats(-2, 2) | st.sampled_from(
    ["hall", "light", ""]), lambda inner: st.lists(inner, max_size=2) | st.dictionaries(
        st.sampled_from(["room", "x", "domain"]), inner, max_size=2), max_leaves=5)


@examples(300)
@given(arguments=st.dictionaries(st.sampled_from([*LAMP["properties"], "colour"]), VALUES, max_size=3),
       room=st.sampled_from(["hall", "attic", "cellar"]))
def test_a_json_schema_validator_agrees(arguments, room):
    """With additionalProperties false in both objects, which an argument that a tool does not name amounts to."""
    strict = json.loads(json.dumps(LAMP))
    strict["additionalProperties"] = strict["properties"]["from"]["additionalProperties"] = False
    for given_arguments in (arguments, {"room": room, **arguments}):
        try:
            check_calls("it", calling("lamp", given_arguments), TOOLS)
        except DataError:
            assert not jsonschema_rs.is_valid(strict, given_arguments)
        else:
            assert jsonschema_rs.is_valid(strict, given_arguments)


def test_the_better_answer_is_checked_and_the_worse_is_not():
    asked = [{"role": "user", "content": "light"}]
    right, wrong = [calling("lamp", {"room": "hall"})], [calling("lamp", {"room": "cellar"})]
    pair = {"prompt": asked, "chosen": right, "rejected": wrong, "tools": TOOLS}
    labelled = {"prompt": asked, "completion": wrong, "label": False, "tools": TOOLS}
    scored = {"prompt": asked, "completions": [right, wrong], "rewards": [1, 0], "tools": TOOLS}
    for parser, good, bad in ((preferences, pair, {**pair, "chosen": wrong, "rejected": right}),
                              (unpaired, labelled, {**labelled, "label": True}),
                              (ranked, scored, {**scored, "rewards": [0, 1]})):
        parser.check_learnable(good)
        with pytest.raises(DataError, match="with room 'cellar', which must be one of hall, attic"):
            parser.check_learnable(bad)


def test_tools_of_a_prompt_and_its_completion_are_shown(tokenizer):
    tokenizer.chat_template = templates.QWEN
    pair = {"prompt": "light", "completion": "on", "tools": TOOLS}
    written = {"messages": [{"role": "user", "content": "light"}, {"role": "assistant", "content": "on"}],
               "tools": TOOLS}
    one, = examples_of(pair, "prompt", tokenizer, None, 9999)
    other, = examples_of(written, "messages", tokenizer, None, 9999)
    assert one.tokens.tolist() == other.tokens.tolist()


def test_commands_name_the_line(tmp_path):
    model = write_tiny(tmp_path / "tiny.gguf", n_context=2048)
    rows = tmp_path / "rows.jsonl"
    good = row_of(calling("lamp", {"room": "hall"}))
    bad = row_of(calling("lamp", {"room": "cellar"}))
    rows.write_text("".join(json.dumps(row) + "\n" for row in [*[good] * 3, bad, good]))
    sentence = "messages[1] calls lamp with room 'cellar', which must be one of hall, attic"
    assert f"1 row of rows.jsonl cannot be used: {sentence} (line 4); mend the call" in run(
        "data", "check", rows, code=1).replace("\n", " ")
    for command in (("train", model, rows, "-o", tmp_path / "out"), ("plan", model, rows)):
        assert f"line 4 of rows.jsonl: {sentence}; mend the call" in run(*command, code=1).replace("\n", " ")
