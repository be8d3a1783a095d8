"""Rows of attempts: their pairs equal two-turn preference rows that are written by hand; every refusal."""

from typing import Any

import pytest
import templates
from json_lines import write_lines

from edgetune.data import attempts, preferences
from edgetune.data import rows as supervised_rows
from edgetune.data.check import findings
from edgetune.data.dataset import load, load_rows
from edgetune.data.facts import TokenizeOptions, inspect
from edgetune.errors import DataError
from edgetune.llamacpp.tokenizer import Tokenizer

SYSTEM = {"role": "system", "content": "the turn"}
USER = {"role": "user", "content": "set the light"}
REQUEST = {"role": "user", "content": "Look at your answer again. Correct it if it is wrong, and repeat it if it is "
                                      "right."}
ROW = {"prompt": "set the light", "completion": "the light on", "attempts": ["off", "light on", "the turn", "on", "1"],
       "labels": [False, True, False, True, True]}
TEMPLATE = templates.QWEN


def said(text):
    return {"role": "assistant", "content": text}


def second(asked, first, chosen, rejected):
    """A preference row of two turns."""
    return {"prompt": [*asked, said(first), REQUEST], "chosen": [said(chosen)], "rejected": [said(rejected)]}


def pairs(asked):
    """Of ROW, by hand."""
    return [second(asked, "off", "the light on", "off"), second(asked, "light on", "light on", "off"),
            second(asked, "the turn", "the light on", "the turn"), second(asked, "on", "on", "the turn"),
            second(asked, "1", "1", "off")]


def facts(rows, tokenizer, parser, **options: Any):
    made = load_rows(rows, tokenizer, max_length=512, parser=parser, learnable=True, **options)
    return [(one.tokens.tolist(), one.weights.tolist(), one.group) for one in made.examples]


@pytest.mark.parametrize(("row", "asked"), [
    (ROW, [USER]),
    ({**ROW, "prompt": [SYSTEM, USER]}, [SYSTEM, USER]),
    ({**{key: value for key, value in ROW.items() if key != "prompt"}, "messages": [USER, said("on"), USER]},
     [USER, said("on"), USER]),
    ({**ROW, "prompt": [USER], "completion": [said("the light on")],
      "attempts": [[said(text)] for text in ROW["attempts"]]}, [USER]),
], ids=["text", "messages and text", "OpenAI's key, with a history", "messages"])
def test_the_pairs_are_preferences_of_two_turns(tokenizer, row, asked):
    """Tokens, weights and groups, over two rows, with a system message."""
    for system in (None, "turn the light"):
        assert facts([row, row], tokenizer, attempts, system=system) == facts(pairs(asked) * 2, tokenizer, preferences,
                                                                              system=system)


def test_the_second_answer_alone_is_learned(tokenizer):
    made = load_rows([ROW], tokenizer, max_length=512, parser=attempts).examples
    for one, text in zip(made[:4], ("the light on", "off", "light on", "off"), strict=True):
        assert tokenizer.decode(one.tokens[one.weights != 0].tolist()).startswith(text)
    assert "repeat it" in tokenizer.decode(made[0].tokens[:made[0].begin].tolist())


def test_a_call_may_be_the_right_answer(tokenizer):
    call = {"role": "assistant", "content": None, "tool_calls": [
        {"id": "1", "type": "function", "function": {"name": "set", "arguments": "{}"}}]}
    tools = [{"type": "function", "function": {"name": "set", "parameters": {"type": "object", "properties": {}}}}]
    row = {"prompt": [USER], "completion": [call], "attempts": ["off", [call]], "labels": [False, True], "tools": tools}
    assert attempts.check_learnable(row) == "attempts"
    by_hand = [{"prompt": [USER, first, REQUEST], "chosen": [call], "rejected": [said("off")], "tools": tools}
               for first in (said("off"), call)]
    assert facts([row], tokenizer, attempts) == facts(by_hand, tokenizer, preferences)


def test_right_attempts_alone_make_no_pair(tokenizer):
    """They cannot be learned, and are left out where rows are measured."""
    right = {**ROW, "attempts": ["on"], "labels": [True]}
    assert attempts.pairs_of(right) == []
    measured = load_rows([right, ROW], tokenizer, max_length=512, parser=attempts)
    assert (len(measured.examples), measured.skipped) == (10, 1)


@pytest.mark.parametrize(("row", "says"), [
    (3, "the row is a JSON number, not an object; expected is prompt with completion, attempts and labels"),
    ("text", "the row is plain text"),
    ({"prompt": "a", "completion": "b"}, r"the row has no attempts with labels \(its keys: prompt, completion\); e"),
    ({key: ROW[key] for key in ("completion", "attempts", "labels")}, "the row asks nothing"),
    ({**ROW, "messages": [USER]}, "the row asks in two ways"),
    ({**ROW, "prompt": 3}, "prompt is a JSON number"),
    ({**ROW, "prompt": [USER, said("on")]}, "the prompt ends with an assistant message"),
    ({**ROW, "completion": 3}, "completion is a JSON number"),
    ({**ROW, "completion": " "}, "completion, a right answer, is empty; write it"),
    ({**ROW, "completion": [USER]}, r"completion\[0\] has the role 'user'"),
    ({**ROW, "attempts": "off"}, "attempts is a JSON string; write a list of the model's answers"),
    ({**ROW, "attempts": [], "labels": []}, "attempts is empty"),
    ({**ROW, "attempts": ["off", None, "", "on", "1"]}, r"attempts\[1\] is a JSON null; write text"),
    ({**ROW, "attempts": ["off", "", "", "on", "1"]}, r"attempts\[1\], a right answer, is empty"),
    ({**ROW, "attempts": ["off", [], "", "on", "1"]}, r"attempts\[1\] is empty"),
    ({**ROW, "labels": True}, "labels is a JSON boolean; write a list of 5 truth values"),
    ({**ROW, "labels": [False]}, "labels has 1; write a list of 5"),
    ({**ROW, "labels": [False, 1, False, True, True]}, r"labels\[1\] is a JSON number; write true"),
    ({**ROW, "attempts": ["the light on ", "on", "off", "on", "1"]},
     r"completion and attempts\[0\] are the same, and only one of them is right; mend the labels"),
    ({**ROW, "attempts": ["off", "on", "2", "on", "off"]}, r"attempts\[0\] and attempts\[4\] are the same"),
    ({**ROW, "labels": [True] * 5}, "no attempt is wrong; remove the row: there is nothing to correct"),
])
def test_what_cannot_be_learned_is_refused(row, says):
    with pytest.raises(DataError, match=says):
        attempts.check_learnable(row)


def test_a_wrong_attempt_may_be_empty_and_repeated(tokenizer):
    row = {**ROW, "attempts": ["", "", "the light on"], "labels": [False, False, True]}
    by_hand = [second([USER], "", "the light on", ""), second([USER], "", "the light on", ""),
               second([USER], "the light on", "the light on", "")]
    assert facts([row], tokenizer, attempts) == facts(by_hand, tokenizer, preferences)


def test_a_model_without_a_template_is_refused(tiny_llama):
    plain = Tokenizer(tiny_llama)
    plain.chat_template = None
    with pytest.raises(DataError, match="row 1: the model has no chat template, and a second answer needs one; use a"):
        load_rows([ROW], plain, max_length=512, parser=attempts)


def test_a_pair_without_room_is_left_out(tokenizer):
    """Of a row the others remain."""
    whole = load_rows([ROW], tokenizer, max_length=512, parser=attempts).examples
    longest = {one.group: max(other.tokens.size for other in whole if other.group == one.group) for one in whole}
    room = min(longest.values())
    found = load_rows([ROW], tokenizer, max_length=room, overflow="skip", parser=attempts)
    fits = {group for group, size in longest.items() if size <= room}
    assert {one.group for one in found.examples} == fits
    assert len(found.examples) == 2 * len(fits) < len(whole)


def test_a_file_with_a_wrong_row_names_its_line(tokenizer, tmp_path):
    path = tmp_path / "rows.jsonl"
    wrong = {**ROW, "labels": [True] * 5}
    write_lines(path, [ROW, wrong])
    with pytest.raises(DataError, match=r"line 2 of rows\.jsonl: no attempt is wrong"):
        load(path, tokenizer, max_length=512, parser=attempts, learnable=True)
    found = inspect("rows.jsonl", [(1, ROW), (2, wrong), (3, 7)], TokenizeOptions(tokenizer, 512), attempts)
    assert [len(row.tokens) for row in found.rows] == [10]
    assert ([line for line, _ in found.empty], [line for line, _ in found.refused]) == ([2], [3])
    mixed = inspect("rows.jsonl", [(1, {"prompt": "a", "completion": "b"})])
    mixed.rows.extend(found.rows * 2)
    assert "1 row of rows.jsonl is not of prompt, completion, attempts and labels" in str(findings(mixed)[0])


def test_such_rows_are_rows_of_answers_too():
    """Plain training and eval read question and right answer from them."""
    assert supervised_rows.check_learnable(ROW) == "prompt"
