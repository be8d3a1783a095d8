"""Calls of tools in text, however it is cut, and the forms in which templates write them."""

import json
from itertools import pairwise

import pytest
import templates
from examples import examples
from hypothesis import given
from hypothesis import strategies as st
from tiny import write_tiny

from edgetune.llamacpp.tokenizer import Tokenizer
from edgetune.serving.question import Question
from edgetune.serving.tool_calls import CallForm, CallReader, call_form, grammar_of, join

TAGGED = ("<tool_call>", "</tool_call>")
LAMP = '{"name": "lamp", "arguments": {"room": "a}\\"{", "n": [1, {}]}}'
ARGUMENTS = {"room": 'a}"{', "n": [1, {}]}


def read(tags, text, cuts):
    reader = CallReader(*tags, {"lamp", "door"})
    places = sorted({cut % (len(text) + 1) for cut in cuts} | {0, len(text)})
    said = ""
    pieces = []
    for start, end in pairwise(places):
        more, calls = reader.push(text[start:end])
        said += more
        pieces += calls
    more, calls = reader.push("", last=True)
    calls = join([*pieces, *calls])
    assert len({call.id for call in calls}) == len(calls) == reader.count
    return said + more, [(call.name, json.loads(call.arguments)) for call in calls]


@examples(30)
@given(cuts=st.lists(st.integers(0, 200), max_size=30))
@pytest.mark.parametrize(("tags", "text", "said", "calls"), [
    (TAGGED, f"<tool_call>\n{LAMP}\n</tool_call>", "", [("lamp", ARGUMENTS)]),
    (TAGGED, f"Well. <tool_call>{LAMP}</tool_call>\n<tool_call>\n{LAMP}\n</tool_call>\n", "Well. ",
     [("lamp", ARGUMENTS)] * 2),
    (TAGGED, f"<tool_call>[{LAMP}, {LAMP}]</tool_call>", "", [("lamp", ARGUMENTS)] * 2),
    (TAGGED, '<tool_call>{"arguments": {}, "name": "door"}</tool_call> done', "done", [("door", {})]),
    (TAGGED, '<tool_call>{"name": "roof", "arguments": {}}', '<tool_call>{"name": "roof", "arguments": {}}', []),
    (TAGGED, "1 < 2 <tool", "1 < 2 <tool", []),
    (TAGGED, '<tool_call>{"name": "la', '<tool_call>{"name": "la', []),
    (("", ""), '{"name": "lamp", "parameters": {"a": 1}}', "", [("lamp", {"a": 1})]),
    (("", ""), 'No. {"name": "lamp", "parameters": {"a": 1}}', 'No. {"name": "lamp", "parameters": {"a": 1}}', []),
    (("", ""), '{"room": "hall"}', '{"room": "hall"}', []),
])
def test_calls_are_found_however_the_text_is_cut(tags, text, said, calls, cuts):
    assert read(tags, text, cuts) == (said, calls)


@pytest.mark.parametrize(("name", "form", "begin", "end"), [
    ("QWEN", CallForm('<tool_call>\n{"name": ', ', "arguments": ', "}\n</tool_call>"), *TAGGED),
    ("LLAMA3", CallForm('{"name": ', ', "parameters": ', "}"), "", ""),
    ("CHATML", CallForm(), *TAGGED)])
def test_a_templates_form_is_what_it_writes(tmp_path, name, form, begin, end):
    tokenizer = Tokenizer(write_tiny(tmp_path / "tiny.gguf"))
    tokenizer.chat_template = getattr(templates, name).replace('<|eot_id|>', '<|im_end|>')  # which its vocabulary has
    found = call_form(tokenizer)
    assert (found, found.begin, found.end) == (form, begin, end)
    tool = {"type": "function", "function": {"name": "lamp", "parameters": {"type": "object", "properties": {}}}}
    assert grammar_of(Question(messages=[], tools=[tool], tool_choice="required"), found)
    call = f'{form.before}"lamp"{form.between}{{"a": 1}}{form.after}'
    assert read((begin, end), call, [3, 9]) == ("", [("lamp", {"a": 1})])
