"""Rows of pairs, of labels and of ranked answers: every shape, as serving has its tokens, and every refusal."""


import pytest
import templates

from edgetune.data import preferences, ranked, unpaired
from edgetune.data import rows as supervised_rows
from edgetune.data.check import findings
from edgetune.data.dataset import load_rows
from edgetune.data.facts import TokenizeOptions, inspect
from edgetune.data.question import question_of
from edgetune.errors import DataError

USER = {"role": "user", "content": "set the light"}
SYSTEM = {"role": "system", "content": "the turn"}
ON = {"role": "assistant", "content": "the light on"}
OFF = {"role": "assistant", "content": "off"}
AGAIN = {"role": "user", "content": "turn"}
CALL = {"role": "assistant", "content": None, "tool_calls": [
    {"id": "1", "type": "function", "function": {"name": "set", "arguments": "{}"}}]}
TOOLS = [{"type": "function", "function": {"name": "set", "parameters": {"type": "object", "properties": {}}}}]
OPENAI = {"input": {"messages": [SYSTEM, USER], "tools": [], "parallel_tool_calls": True}, "preferred_output": [ON],
          "non_preferred_output": [OFF]}
TEMPLATE = templates.QWEN


def learned(tokenizer, row):
    """Tokens and weights of a supervised row."""
    (made,) = supervised_rows.examples_of(row, supervised_rows.check_row(row), tokenizer, None, 512)
    return made.tokens.tolist(), made.weights.tolist()


@pytest.mark.parametrize(("row", "chosen", "rejected"), [
    ({"prompt": "set the light", "chosen": "the light on", "rejected": "off"}, [USER, ON], [USER, OFF]),
    ({"prompt": [SYSTEM, USER], "chosen": [ON], "rejected": [OFF], "score": 3}, [SYSTEM, USER, ON],
     [SYSTEM, USER, OFF]),
    ({"chosen": [USER, ON], "rejected": [USER, OFF]}, [USER, ON], [USER, OFF]),
    (OPENAI, [SYSTEM, USER, ON], [SYSTEM, USER, OFF]),
    ({"prompt": [USER, {**OFF, "weight": 0}, AGAIN], "chosen": [ON], "rejected": [OFF]},
     [USER, {**OFF, "weight": 0}, AGAIN, ON], [USER, {**OFF, "weight": 0}, AGAIN, OFF]),
    ({"prompt": [USER, OFF, AGAIN], "chosen": [ON], "rejected": [OFF]},
     [USER, {**OFF, "weight": 0}, AGAIN, ON], [USER, {**OFF, "weight": 0}, AGAIN, OFF]),
], ids=["text", "messages", "implicit", "openai", "history", "a history with answers"])
def test_a_pair_has_the_tokens_of_serving(tokenizer, row, chosen, rejected):
    """The answer alone is learned, also where the prompt has answers."""
    assert preferences.check_learnable(row) == "preference"
    better, worse = preferences.examples_of(row, "preference", tokenizer, None, 512)
    assert (better.group, worse.group) == (1, 1)
    for made, messages in ((better, chosen), (worse, rejected)):
        assert (made.tokens.tolist(), made.weights.tolist()) == learned(tokenizer, {"messages": messages})


@pytest.mark.parametrize(("chosen", "rejected", "prompt"), [
    ("the sky is blue", "the sky is green", "the sky is"), ("a b ", "a b c", "a b"), ("say: good", "say: bad", "say:"),
    ("one\nblue", "one\nred", "one\n"), ("the sky is black", "the sky is blue", "the sky is")])
def test_the_prompt_of_two_texts_is_what_they_begin_with(chosen, rejected, prompt):
    """As TRL's extract_prompt, but where that parts a word."""
    better, worse = preferences.answers_of({"chosen": chosen, "rejected": rejected})
    assert (better.prompt, worse.prompt) == (prompt, prompt)
    assert (better.prompt + better.answer, worse.prompt + worse.answer) == (chosen, rejected)
    if (chosen, prompt)  != ("the sky is black", "the sky is"):
        extract = pytest.importorskip("trl").extract_prompt
        assert extract({"chosen": chosen, "rejected": rejected})["prompt"] == prompt


def test_an_answer_may_be_a_call():
    row = {"input": {"messages": [USER], "tools": TOOLS}, "preferred_output": [CALL], "non_preferred_output": [OFF]}
    assert preferences.check_learnable(row) == "preference"
    assert preferences.answers_of(row)[0].row["tools"] == TOOLS


PAIR = {"prompt": "a", "chosen": "b", "rejected": "c"}


NO_PAIR = [
    ("text", "the row is plain text; expected is prompt with chosen"),
    (["a"], "the row is a JSON list, not an object"),
    ({"prompt": "a", "completion": "b"}, r"the row is no pair of answers \(its keys: prompt, completion\); expe"),
    ({**PAIR, "rejected": " b "}, "chosen and rejected are the same; remove the row"),
    ({**PAIR, "chosen": " "}, "chosen is empty; write the better answer"),
    ({**PAIR, "chosen": 3}, "chosen is a JSON number; write text, or a list of messages"),
    ({**PAIR, "prompt": None}, "prompt is a JSON null"),
    ({**PAIR, "chosen": [ON]}, "one of chosen and rejected is text, the other is messages"),
    ({**PAIR, "chosen": [ON], "rejected": [OFF]}, "prompt is text and chosen is a JSON list"),
    ({**PAIR, "prompt": [USER]}, "chosen is text among lists of messages"),
    ({**PAIR, "prompt": [], "chosen": [ON], "rejected": [OFF]}, "prompt is empty"),
    ({"prompt": [USER], "chosen": [ON, USER, OFF], "rejected": [OFF]}, "chosen has 3 messages; write one"),
    ({"prompt": [USER], "chosen": [], "rejected": [OFF]}, "chosen is empty"),
    ({"prompt": [USER], "chosen": [USER], "rejected": [OFF]}, r"chosen\[0\] has the role 'user'; an answer is"),
    ({"prompt": [USER], "chosen": [{"role": "assistant"}], "rejected": [OFF]}, r"chosen\[0\] has content of JSON"),
    ({"prompt": [USER, ON], "chosen": [ON], "rejected": [OFF]}, "the prompt ends with an assistant message"),
    ({"prompt": [{"role": "robot", "content": ""}], "chosen": [ON], "rejected": [OFF]}, r"prompt\[0\] has the role 'r"),
    ({"prompt": [USER], "chosen": [ON], "rejected": [ON]}, "chosen and rejected are the same"),
    ({"prompt": [USER], "chosen": [{**ON, "content": ""}], "rejected": [ON]}, "chosen is empty"),
    ({"chosen": "yes", "rejected": "no"}, "begin with nothing alike"),
    ({"chosen": [USER, ON], "rejected": [AGAIN, OFF]}, "begin with nothing alike"),
    ({"chosen": [SYSTEM, USER, ON], "rejected": [SYSTEM, AGAIN, OFF]}, r"have different prompts: chosen\[1\] has the"),
    ({"chosen": [USER, ON, AGAIN, OFF], "rejected": [USER, OFF]}, "chosen has 3 messages"),
    ({"chosen": [USER, ON, AGAIN, OFF], "rejected": [USER, ON]}, "chosen has 3 messages"),
    ({"chosen": [USER, ON], "rejected": [USER, ON]}, "chosen and rejected are the same"),
    ({**OPENAI, "preferred_output": [ON, OFF]}, "preferred_output has 2 messages"),
    ({**OPENAI, "preferred_output": []}, "preferred_output is empty"),
    ({**OPENAI, "preferred_output": ON}, "preferred_output is a JSON object; write a list"),
    ({**OPENAI, "non_preferred_output": [USER]}, r"non_preferred_output\[0\] has the role 'user'"),
    ({**OPENAI, "non_preferred_output": [ON]}, "preferred_output and non_preferred_output are the same"),
    ({**OPENAI, "input": "set"}, "input is a JSON string"),
    ({**OPENAI, "input": {"messages": "set"}}, "input has no list of messages"),
    ({**OPENAI, "input": {"messages": [USER], "tools": 3}}, "tools is a JSON number"),
]


GOOD = {"prompt": "set the light", "completion": "on", "label": True}


def test_a_label_is_a_reward(tokenizer):
    for row, reward in ((GOOD, 1.0), ({**GOOD, "label": False, "completion": ""}, 0.0),
                        ({"prompt": [USER], "completion": [ON], "label": True}, 1.0)):
        assert unpaired.check_learnable(row) == "unpaired"
        (made,) = unpaired.examples_of(row, "unpaired", tokenizer, None, 512)
        assert (made.reward, made.group) == (reward, 0)
    assert (made.tokens.tolist(), made.weights.tolist()) == learned(tokenizer, {"messages": [USER, ON]})


NO_LABEL = [
    ({"prompt": "a", "completion": "b"}, r"the row is no answer with a label \(its keys: prompt, completion\)"),
    ({**GOOD, "label": 1}, "label is a JSON number; write true"),
    ({**GOOD, "completion": " "}, "the completion is empty and its label true"),
    ({**GOOD, "completion": [ON]}, "prompt is text and completion is a JSON list"),
    ({"prompt": [USER], "completion": [USER], "label": True}, r"completion\[0\] has the role 'user'"),
    (7, "the row is a JSON number, not an object")
]


RANKED = {"prompt": "set the light", "completions": ["on", "off", "10"], "rewards": [1, 0.5, -2]}


def test_ranked_answers_are_a_group(tokenizer):
    assert ranked.check_learnable(RANKED) == "ranked"
    made = list(ranked.examples_of(RANKED, "ranked", tokenizer, None, 512))
    assert [(one.group, one.reward) for one in made] == [(1, 1.0), (1, 0.5), (1, -2.0)]
    for one, answer in zip(made, RANKED["completions"], strict=True):
        assert one.tokens.tolist() == learned(tokenizer, {"prompt": "set the light", "completion": answer})[0]
    assert ranked.check_learnable({**RANKED, "completions": ["on", "on", "10"], "rewards": [1, 1, 0]}) == "ranked"


NOT_RANKED = [
    ({"prompt": "a", "completions": ["b", "c"]}, "the row has no answers with rewards"),
    ({**RANKED, "completions": ["on"]}, "completions has 1; write a list of 2 answers or more"),
    ({**RANKED, "completions": "on"}, "completions is a JSON string"),
    ({**RANKED, "completions": ["on", 3, "x"]}, r"completions\[1\] is a JSON number"),
    ({**RANKED, "rewards": [1, 2]}, "rewards has 2; write a list of 3 numbers"),
    ({**RANKED, "rewards": 1}, "rewards is a JSON number"),
    ({**RANKED, "rewards": [1, True, 0]}, r"rewards\[1\] is True; write a finite number"),
    ({**RANKED, "rewards": [1, float("nan"), 0]}, r"rewards\[1\] is nan"),
    ({**RANKED, "rewards": [1, 1, 1]}, "all 3 rewards are 1; remove the row"),
    ({**RANKED, "completions": [" ", "off", "10"]}, r"completions\[0\], the best answer, is empty"),
    ({**RANKED, "completions": ["on", "on", "10"]}, r"completions\[0\] and completions\[1\] are the same, and their"),
]


@pytest.mark.parametrize(("parser", "row", "says"), [(parser, *one) for parser, table in (
    (preferences, NO_PAIR), (unpaired, NO_LABEL), (ranked, NOT_RANKED)) for one in table])
def test_what_cannot_be_learned_is_refused(parser, row, says):
    with pytest.raises(DataError, match=says):
        parser.check_learnable(row)


# ---- files and data sets ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("long", ["chosen", "rejected"])
def test_of_a_pair_both_answers_are_kept_or_none(tokenizer, long):
    pair = {"prompt": "set", "chosen": "on", "rejected": "off", long: "the light off " * 60}
    rows = [{"prompt": "set", "chosen": "on", "rejected": "off"}, pair]
    kept = load_rows(rows, tokenizer, max_length=64, parser=preferences, overflow="skip")
    assert ([one.group for one in kept.examples], kept.skipped, len(kept.rows)) == ([1, 1], 2, 1)
    cut = load_rows(rows, tokenizer, max_length=64, parser=preferences)
    assert ([one.group for one in cut.examples], cut.truncated) == ([1, 1, 2, 2], 1)
    assert max(one.tokens.size for one in cut.examples) == 64


def test_pairs_of_every_shape_ask_the_same():
    same = [{"prompt": [SYSTEM, USER], "chosen": [ON], "rejected": [OFF]}, OPENAI,
            {"chosen": [SYSTEM, USER, ON], "rejected": [SYSTEM, USER, OFF]}]
    assert [question_of(row) for row in same] == [[SYSTEM, USER]] * 3


@pytest.mark.parametrize(("parser", "row", "wrong", "words"), [
    (preferences, OPENAI, {**OPENAI, "preferred_output": [OFF]}, "the same"),
    (unpaired, GOOD, {**GOOD, "completion": ""}, "empty"),
    (ranked, RANKED, {**RANKED, "rewards": [0, 0, 0]}, "no answer is better")], ids=["pairs", "labels", "ranked"])
def test_a_check_of_a_file_knows_them(tokenizer, parser, row, wrong, words):
    found = inspect("rows.jsonl", [(1, row), (2, wrong), (3, 7)], TokenizeOptions(tokenizer, 64), parser)
    assert [facts.line for facts in found.rows] == [1]
    assert len(found.rows[0].tokens) == len(list(parser.examples_of(row, "", tokenizer, None, 64)))
    assert [line for line, _ in found.empty + found.refused] == [2, 3]
    assert words in str(found.empty[0][1])
    assert any(part.learned for part in found.sample)
    assert {finding.kind for finding in findings(found) if finding.fatal} >= {"refused", "empty"}


def test_answers_of_pairs_that_contradict_each_other_are_found():
    rows = [{"prompt": "a", "chosen": answer, "rejected": "x"} for answer in ("b", "c")]
    found = findings(inspect("rows.jsonl", list(enumerate(rows, 1)), None, preferences))
    assert "contradictory" in {finding.kind for finding in found}
