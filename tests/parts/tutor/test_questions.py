"""Which questions are asked, learned and held out."""

import json

import pytest
from json_lines import write_lines

from edgetune.data.question import question_key
from edgetune.errors import DataError
from edgetune.parts.tutor.rounds.questions import TutorQuestion, in_turn, pool_of, read_questions


def questions(n, reference="", word="question"):
    rows = [{"prompt": f"{word} {i}"} for i in range(n)]
    return [TutorQuestion(question_key(row), row, reference) for row in rows]


def keys_of(found):
    return {question.key for question in found}


def test_a_question_is_the_same_in_other_letters_and_without_its_answer():
    assert question_key({"prompt": "Is it  ON?"}) == question_key({"prompt": "is it on"})
    messages = [{"role": "user", "content": "Is it on?"}]
    assert question_key({"prompt": "is it on"}) == question_key({"messages": messages})
    assert question_key({"prompt": "is it on"}) != question_key({"prompt": "is it off"})
    messages = [{"role": "user", "content": "on?"}, {"role": "assistant", "content": "yes"}]
    assert question_key({"messages": messages}) == question_key({"prompt": "on?"})


def test_a_question_stays_on_its_side_when_others_come():
    few = {question.key: question.is_held_out for question in questions(50)}
    many = {question.key: question.is_held_out for question in questions(2000)}
    assert all(many[key] == side for key, side in few.items())
    assert sum(many.values()) / 2000 == pytest.approx(0.2, abs=0.03)


def test_without_a_grader_questions_with_answers_are_held_out():
    labelled = questions(60, "yes")[:40]
    found = pool_of(labelled, questions(60), has_grader=False)
    assert keys_of(found.labelled) | keys_of(found.held) == keys_of(labelled)
    assert keys_of(found.bare) == keys_of(questions(60)[40:])
    assert keys_of(found.held_labelled) == keys_of(found.held) == {one.key for one in labelled if one.is_held_out}
    with pytest.raises(DataError, match=r"--labelled FILE.*--grader FILE"):
        pool_of([], questions(60), has_grader=False)
    with pytest.raises(DataError, match="no prompt without an answer"):
        pool_of(labelled, [], has_grader=False)


def test_with_a_grader_a_fifth_of_all_is_held_out_and_those_with_answers_may_be_learned_later():
    found = pool_of(questions(40, "yes", "labelled"), questions(60), has_grader=True)
    assert keys_of(found.held) == {one.key for one in (*questions(40, word="labelled"), *questions(60))
                                   if one.is_held_out}
    assert {one.reference for one in found.held_labelled} == {"yes"}
    assert not keys_of(found.held) & (keys_of(found.labelled) | keys_of(found.bare))


def test_named_held_out_rows_are_never_learned():
    """Also where a prompt or a labelled row asks the same; one without an answer needs a grader."""
    asked = questions(60)
    answered = questions(60, "no")[:3]
    bare = asked[3:5]
    for has_grader in (False, True):
        found = pool_of(questions(60, "yes")[20:30], asked, has_grader, held=[*answered, *bare])
        assert keys_of(found.held) == keys_of([*answered, *(bare if has_grader else [])])
        assert found.held_labelled == []
        assert keys_of(found.labelled) | keys_of(found.bare) == keys_of(asked[5:])
        assert keys_of(found.labelled) == keys_of(asked[20:30])


@pytest.mark.parametrize("row", [{"prompt": "on?"}, {"messages": [{"role": "user", "content": "on?"}]}])
def test_held_rows_are_of_either_kind(row, tmp_path, tokenizer):
    answered = {"prompt": "off?", "completion": "no"}
    chat = {"messages": [{"role": "user", "content": "dim?"}, {"role": "assistant", "content": "yes"}]}
    path = write_lines(tmp_path / "held.jsonl", [row, answered, chat])
    found = read_questions(path, tokenizer, None, labelled=None)
    assert [(question.text, question.reference) for question in found] == [("on?", ""), ("off?", "no"), ("dim?", "yes")]


def test_questions_come_in_turn():
    """The next ones each time, and all of few."""
    many = questions(400)
    asked = [keys_of(in_turn(many, number, 30, 0)) for number in (1, 2, 3, 14)]
    assert all(len(keys) == 30 for keys in asked)
    assert not asked[0] & asked[1] | asked[1] & asked[2]
    assert asked[3] & asked[0]  # the order has begun again
    assert keys_of(in_turn(many[:7], 5, 500, 0)) == keys_of(many[:7])


def test_files(tmp_path, tokenizer):
    path = tmp_path / "rows.jsonl"
    path.write_text("\n".join(json.dumps(row) for row in (
        {"prompt": "a?", "completion": "b "}, {"prompt": "A", "completion": "c"}, {"prompt": "d", "city": "e"})))
    asked = read_questions(path, tokenizer, None, labelled=False)
    assert [(question.text, question.reference) for question in asked] == [("a?", "b"), ("d", "")]
    assert asked[1].item["city"] == "e"
    assert asked[0].with_answer("x") == {"prompt": "a?", "completion": "x"}
    with pytest.raises(DataError, match=r"line 3 of rows\.jsonl: "):
        read_questions(path, tokenizer, None, labelled=True)
    path.write_text('{"prompt": "a", "completion": 3}')
    with pytest.raises(DataError, match=r"line 1 of rows\.jsonl: completion is a JSON number; write the right answer"):
        read_questions(path, tokenizer, None, labelled=False)
