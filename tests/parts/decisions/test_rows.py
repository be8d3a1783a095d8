"""Rows with typed questions: read into conversations, and refused in one sentence that names the field."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st
from json_lines import write_lines

from edgetune.data import decisions
from edgetune.data.decisions import CHOICE, NOUL, SCORE, conversation, key_of, read_key, state_text
from edgetune.data.files import begins_with_questions, read_rows
from edgetune.data.formats import recognised
from edgetune.data.labelled import question_and_answer
from edgetune.errors import DataError

QUESTIONS = {"team": {"type": "choice", "instructions": "Who repairs it?",
                      "criteria": {"plumber": None, "roofer": "leaks above", "gas fitter": None}},
             "urgent": {"type": "noul", "instructions": "Must it be today?"},
             "damage": {"type": "score", "instructions": "How bad is it?", "criteria": ["none", "some", "much"]}}
TEAM, URGENT, DAMAGE = (key_of(CHOICE, "Who repairs it?"), key_of(NOUL, "Must it be today?"),
                        key_of(SCORE, "How bad is it?", ["none", "some", "much"]))
CHAT = [{"role": "user", "content": "It drips."}, {"role": "assistant", "content": "Where?"},
        {"role": "user", "content": [{"type": "text", "text": "In the "}, {"type": "input_text", "text": "cellar."}]}]
PLAIN = st.text(st.characters(codec="utf-8", exclude_categories=("Cs", "Cc")), min_size=1, max_size=30)
TEXTS = PLAIN.filter(lambda text: decisions.words(text))


def row(expected, questions=QUESTIONS, field="expected"):
    return {"state": "The cellar is wet.", "questions": questions, field: expected}


def labels_of(found):
    """The labels of a row's conversation, by their keys, as what learns from it reads them."""
    question, answer = question_and_answer(found)
    assert question == "The cellar is wet."
    return decisions.labels_in(answer)


def refused(call, *given):
    """The sentence with which a call refuses what is given."""
    with pytest.raises(DataError) as caught:
        call(*given)
    said = str(caught.value)
    assert caught.value.hint
    assert "\n" not in said
    return said


@pytest.mark.parametrize(("field", "answers", "labels"), [
    ("expected", {"team": "plumber", "urgent": True, "damage": 1}, {TEAM: "plumber", URGENT: "true", DAMAGE: "1"}),
    ("expected", {"team": " gas  fitter"}, {TEAM: "gas fitter"}),
    ("expected", {"urgent": "false", "damage": "2", "team": None}, {URGENT: "false", DAMAGE: "2"}),
    ("gold", {"team": {"plumber": 0.9, "roofer": 0.1}, "urgent": 0.75, "damage": [0, 0.7, 0.3]},
     {TEAM: {"plumber": 0.9, "roofer": 0.1}, URGENT: {"true": 0.75, "false": 0.25}, DAMAGE: {"1": 0.7, "2": 0.3}}),
    ("gold", {"team": {"plumber": 1, "roofer": 0}, "urgent": 0, "damage": {"2": 1.0}},
     {TEAM: "plumber", URGENT: "false", DAMAGE: "2"})])
def test_a_row_is_a_conversation_of_labels(field, answers, labels):
    found = recognised(row(answers, field=field), ())
    assert [message["role"] for message in found["messages"]] == ["user", "assistant"]
    assert labels_of(found) == labels


def test_an_empty_expected_leaves_gold():
    assert labels_of(conversation({**row({"urgent": 1}, field="gold"), "expected": None})) == {URGENT: "true"}


@pytest.mark.parametrize(("given", "says"), [
    (row({}), "expected is no object with answers"),
    (row([1]), "expected is no object with answers"),
    (row([1], field="gold"), "gold is no object with answers"),
    (row({"place": "hall"}), "expected answers 'place', which is none of the questions"),
    (row({"place": "hall"}, field="gold"), "gold answers 'place', which is none of the questions"),
    (row({"team": None}), "the row answers no question"),
    (row({"team": "baker"}), "expected.team is 'baker', which is no option; choose from plumber, roofer, gas fitter"),
    (row({"urgent": "yes"}), "expected.urgent is 'yes', which is no option; choose from false, true"),
    (row({"damage": 3}), "expected.damage is 3, which is no option; choose from 0, 1, 2"),
    (row({"damage": "much"}), "expected.damage is 'much', which is no option"),
    (row({"damage": 1.5}), "expected.damage is 1.5, which is no option"),
    (row({"team": ["plumber"]}), "expected.team is ['plumber'], which is no option"),
    (row({"team": {"baker": 1}}, field="gold"), "gold.team names 'baker', which is no option"),
    (row({"team": {"plumber": -1}}, field="gold"), "gold.team.plumber is -1, which is no probability"),
    (row({"team": {"plumber": True}}, field="gold"), "gold.team.plumber is True, which is no probability"),
    (row({"urgent": 1.5}, field="gold"), "gold.urgent.true is 1.5, which is no probability"),
    (row({"urgent": float("nan")}, field="gold"), "gold.urgent.true is nan, which is no probability"),
    (row({"team": {"plumber": 0.5}}, field="gold"), "the probabilities of gold.team have the sum 0.5; let it be 1"),
    (row({"damage": [0, 0, 0, 1]}, field="gold"), "gold.damage names '3', which is no option"),
    ({"state": "x", "expected": {"team": "plumber"}}, "the row has no questions"),
    ({**row({"team": "plumber"}), "state": " "}, "the state is empty"),
    ({**row({"team": "plumber"}), "state": 5}, "the state is no text, object or list"),
    ({**row({"team": "plumber"}), "state": [{"role": "user", "content": [{"type": "image"}]}]},
     "messages[0] of the state is not text alone")])
def test_a_wrong_row_is_refused_with_its_field(given, says):
    assert says in refused(recognised, given, ())


def asked(type="choice", **fields):
    return {"q": {"type": type, "instructions": "What is it?", **fields}}


@pytest.mark.parametrize(("questions", "says"), [
    ([], "questions is no object of 1 to 64 questions"), ({}, "questions is no object of 1 to 64 questions"),
    ({f"q{i}": QUESTIONS["urgent"] for i in range(65)}, "questions is no object of 1 to 64 questions"),
    ({"q": "What is it?"}, "questions.q is no object"),
    ({"q" * 101: QUESTIONS["urgent"]}, "of a question has 101 characters, at most 100 are read"),
    (asked("box"), "questions.q.type is 'box'; choose from choice, score, noul"),
    (asked(["choice"]), "questions.q.type is ['choice']"),
    (asked(), "questions.q.criteria is no object of options"),
    (asked(criteria=["a", "b"]), "questions.q.criteria is no object of options"),
    (asked(criteria={"a": None}), "questions.q has 1 options; give 2 to 255"),
    (asked(criteria={str(i): None for i in range(256)}), "questions.q has 256 options; give 2 to 255"),
    (asked(criteria={"a": None, " ": None}), "questions.q has an empty option"),
    (asked(criteria={"a": None, "a ": None}), "questions.q has the same option twice"),
    (asked(criteria={"a": None, "b" * 2001: None}), "questions.q has an option of 2001 characters"),
    (asked(criteria={"a": None, "b": "x" * 2001}), "questions.q has an option of 2001 characters"),
    (asked("score"), "questions.q.criteria is no list of levels"),
    (asked("score", criteria=["one"]), "questions.q has 1 options; give 2 to 10"),
    (asked("score", criteria=["one"] * 11), "questions.q has 11 options; give 2 to 10"),
    (asked("score", criteria=["one", ""]), "questions.q has an empty option"),
    (asked("noul", criteria={"yes": "it is"}), "questions.q.criteria has other keys than true and false"),
    (asked("noul", criteria=["no"]), "questions.q.criteria has other keys than true and false"),
    (asked("noul", instructions="x" * 2001), "questions.q.instructions has 2001 characters, at most 2000 are read"),
    *((asked("noul", instructions=each), f"questions.q.instructions is {each!r}, which is no text")
      for each in ({}, [], 0, 1.5, False, True)),
    (asked("noul", instructions=" "), "questions.q.instructions is empty"),
    ({" ": {"type": "noul"}}, "instructions is empty")])
def test_a_wrong_question_is_refused_with_its_field(questions, says):
    assert says in refused(decisions.read_questions, questions)


def test_the_limits_are_reached():
    assert len(decisions.read_questions({f"q{i}": QUESTIONS["urgent"] for i in range(64)})) == 64
    options = {f"{i} " * 400: "x" * 2000 for i in range(2, 257)}
    assert len(decisions.read_questions(asked(criteria=options))["q"].labels) == 255
    assert len(decisions.read_questions(asked("score", criteria=[*"abcdefghij"]))["q"].labels) == 10


def test_without_instructions_the_name_is_the_question():
    for empty in ({}, {"instructions": None}, {"instructions": ""}):
        [found] = decisions.read_questions({"is it late": {"type": "noul", **empty}}).values()
        assert found.instructions == "is it late"
    [found] = decisions.read_questions({"q": {"type": "noul", "instructions": {"ask": ["is it", 1]}}}).values()
    assert found.instructions == '{"ask": ["is it", 1]}'


# ---- states ----------------------------------------------------------------------------------------------------------


@given(st.recursive(st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | PLAIN,
                    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(PLAIN, inner, max_size=4),
                    max_leaves=8).filter(lambda value: isinstance(value, dict | list) and value))
def test_json_is_the_state_that_its_text_is(value):
    for space in (None, 2):
        assert state_text(json.dumps(value, indent=space)) == state_text(value)
        assert state_text(f"\n {json.dumps(value, ensure_ascii=False, indent=space)} ") == state_text(value)


def test_messages_are_read_a_line_each():
    read = "user: It drips.\nassistant: Where?\nuser: In the cellar."
    assert state_text(CHAT) == state_text({"messages": CHAT}) == state_text(json.dumps({"messages": CHAT})) == read
    assert state_text(CHAT[:1]) == "It drips."
    call = {"role": "assistant", "content": None, "tool_calls": [{"function": {"name": "tap"}}]}
    assert state_text([CHAT[0], call]) == 'user: It drips.\nassistant: [{"function": {"name": "tap"}}]'
    parts = [{"type": "input_json", "data": {"tap": 1}}, {"type": "refusal", "refusal": " no"}]
    assert state_text([{"role": "user", "content": parts}]) == '{"tap": 1} no'
    assert state_text({"messages": CHAT, "place": "cellar"}).startswith('{"messages": [{"role"')


@pytest.mark.parametrize("text", ["{", "[1", "{}", "[]", '["\\ud800"]', f"[{'1' * 5000}]", "[" * 100_000])
def test_a_text_that_is_no_state_of_json_stays_text(text):
    found = state_text(text)
    assert found == text
    assert found.encode()


# ---- keys ------------------------------------------------------------------------------------------------------------


@given(st.sampled_from([CHOICE, NOUL, SCORE]), TEXTS, st.lists(TEXTS, min_size=2, max_size=4))
def test_a_key_is_read_back_and_never_divides_elsewhere(type, asked, levels):
    levels = levels if type == SCORE else []
    key = key_of(type, asked, levels)
    assert key == key_of(type, f"  {asked.replace(' ', '   ')} ", [f"{level} " for level in levels])
    found = read_key(key)
    assert (found.type, found.instructions) == (type, decisions.words(asked))
    assert found.key == key
    assert decisions.split(decisions.prompt_of(key, "one\n\ntwo")) == (key, "one\n\ntwo")


@pytest.mark.parametrize("text", [
    "", "{", '{"type": "noul"}', '{"type": "box", "instructions": "x"}', '{"type": ["noul"], "instructions": "x"}',
    '{"type": "noul", "instructions": " x"}', '{"type": "score", "instructions": "x", "levels": [1, 2]}',
    '{"instructions": "x", "type": "noul"}', '{"type": "noul", "instructions": 1}', '{"' + "[" * 100_000])
def test_other_texts_are_no_keys(text):
    assert read_key(text) is None
    assert decisions.split(f"{text}\n\nstate") == ("", f"{text}\n\nstate")


def test_options_of_a_choice_do_not_name_it_and_levels_do():
    one, other = (decisions.read_questions(asked(criteria=dict.fromkeys(options)))["q"].key for options in ("ab", "bc"))
    assert one == other
    one, other = (decisions.read_questions(asked("score", criteria=[*options]))["q"].key for options in ("ab", "bc"))
    assert one != other


def test_an_answer_is_checked_by_the_key_where_this_knows_the_options():
    for key, right, wrong in ((URGENT, "true", "yes"), (DAMAGE, "2", "3")):
        decisions.check_answer(key, right)
        assert "which is no option; choose from" in refused(decisions.check_answer, key, wrong)
        messages = [{"role": "system", "content": key}, {"role": "user", "content": "It drips."},
                    {"role": "assistant", "content": wrong}]
        assert "which is no option" in refused(question_and_answer, {"messages": messages})
    decisions.check_answer(TEAM, "baker")  # a further option
    decisions.check_answer("", "yes")


# ---- files -----------------------------------------------------------------------------------------------------------


def test_questions_in_a_line_of_their_own_are_those_of_the_rows_after_it(tmp_path):
    rows = [{"questions": QUESTIONS}, {"state": "one", "expected": {"team": "roofer"}},
            {"state": "two", "questions": {"urgent": QUESTIONS["urgent"]}, "expected": {"urgent": True}},
            {"questions": {"team": QUESTIONS["damage"]}}, {"state": "three", "gold": {"team": [0.5, 0.5]}},
            {"prompt": "four", "completion": "plumber"}]
    path = write_lines(tmp_path / "rows.jsonl", rows)
    assert begins_with_questions(path)
    found = [(line, question_and_answer(recognised(each, ()) if "state" in each else each))
             for line, each in read_rows(path)]
    assert found == [(2, ("one", decisions.written({TEAM: "roofer"}))),
                     (3, ("two", decisions.written({URGENT: "true"}))),
                     (5, ("three", decisions.written({DAMAGE: {"0": 0.5, "1": 0.5}}))),
                     (6, ("four", "plumber"))]
    (tmp_path / "all").mkdir()
    write_lines(tmp_path / "all" / "1.jsonl", rows[:1])
    write_lines(tmp_path / "all" / "2.jsonl", rows[1:2])
    assert [each["questions"] for _, each in read_rows(tmp_path / "all")] == [QUESTIONS]
    assert "has only questions" in refused(recognised, rows[0], ())
