"""Which questions are asked, and which judge."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgetune.errors import DataError
from edgetune.llamacpp.tokenizer import Tokenizer
from edgetune.tutor.questions import (
    DEV,
    JUDGE,
    LEARN,
    Pool,
    Question,
    key_of,
    of_round,
    pool_of,
    read_questions,
    select,
)


def questions(n: int, reference: str = "") -> list[Question]:
    rows = [{"prompt": f"question {i}"} for i in range(n)]
    return [Question(key_of(row), row, reference) for row in rows]


def pool(n: int) -> Pool:
    return pool_of([], questions(n), has_grader=True)


def test_a_question_is_the_same_in_other_letters() -> None:
    assert key_of({"prompt": "Is it  ON?"}) == key_of({"prompt": "is it on"})
    assert key_of({"prompt": "is it on"}) == key_of({"messages": [{"role": "user", "content": "Is it on?"}]})
    assert key_of({"prompt": "is it on"}) != key_of({"prompt": "is it off"})


def test_an_answer_is_no_part_of_what_is_asked() -> None:
    messages = [{"role": "user", "content": "on?"}, {"role": "assistant", "content": "yes"}]
    assert key_of({"messages": messages}) == key_of({"prompt": "on?"})


def test_sides_are_a_function_of_the_question() -> None:
    few = {question.key: question.side for question in questions(50)}
    many = {question.key: question.side for question in questions(2000)}
    assert all(many[key] == side for key, side in few.items())
    shares = [list(many.values()).count(side) / 2000 for side in (JUDGE, LEARN)]
    assert shares == pytest.approx([0.2, 0.7], abs=0.03)


def test_without_a_grader_bare_prompts_are_not_right_answers() -> None:
    found = pool_of(questions(60, "yes")[:40], questions(60), has_grader=False)
    assert all(question.reference for question in (*found.judge, *found.dev))
    assert len(found.learn) + len(found.dev) + len(found.judge) + sum(map(len, found.bare.values())) == 60
    with pytest.raises(DataError, match=r"nothing can judge.*--labelled FILE.*--grader FILE"):
        pool_of([], questions(60), has_grader=False)


def test_held_questions_judge_alone_and_are_never_learned() -> None:
    """Also where a prompt, or a labelled row, asks the same; one without an answer judges beside a grader alone."""
    asked = questions(60)
    labelled = questions(60, "yes")[20:30]
    answered = questions(60, "no")[:3]
    bare = asked[3:5]
    for has_grader in (False, True):
        found = pool_of(labelled, asked, has_grader, held=[*answered, *bare])
        keys = {question.key for question in found.judge}
        assert keys == {question.key for question in [*answered, *(bare if has_grader else [])]}
        assert all(question.reference == "no" for question in found.judge if question not in bare)
        learned = {question.key for question in (*found.learn, *found.dev)}
        assert learned == {question.key for question in asked[5:]}
        assert {question.key for question in labelled} <= {question.key for question in found.learn}
        assert bool(found.dev) == has_grader  # of which some choose how far to go


@pytest.mark.parametrize("row", [{"prompt": "on?"}, {"messages": [{"role": "user", "content": "on?"}]}])
def test_held_rows_are_of_either_kind(row: dict[str, object], tmp_path: Path, tokenizer: Tokenizer) -> None:
    answered = {"prompt": "off?", "completion": "no"}
    chat = {"messages": [{"role": "user", "content": "dim?"}, {"role": "assistant", "content": "yes"}]}
    path = tmp_path / "held.jsonl"
    path.write_text("".join(json.dumps(each) + "\n" for each in (row, answered, chat)))
    found = read_questions(path, tokenizer, None, labelled=None)
    assert [(question.text, question.reference) for question in found] == [("on?", ""), ("off?", "no"), ("dim?", "yes")]


@given(n=st.integers(20, 120), wanted=st.integers(1, 80), unseen=st.floats(0, 1), seed=st.integers(0, 9),
       rates=st.lists(st.sampled_from([0.0, 0.5, 1.0]), max_size=120))
def test_a_round_takes_what_it_wants_once(n: int, wanted: int, unseen: float, seed: int, rates: list[float]) -> None:
    of = pool(n)
    known = {question.key: rate for question, rate in zip(of.learn, rates, strict=False)}
    chosen = select(of, known, wanted, unseen, [seed])
    keys = [question.key for question in chosen]
    assert len(set(keys)) == len(keys) == min(wanted, len(of.learn))
    assert chosen == select(of, known, wanted, unseen, [seed])
    new = sum(key not in known for key in keys)
    left = len(of.learn) - len(known)
    assert new >= min(left, round(unseen * wanted), len(keys))
    still_open = sum(rate == 0.5 for rate in known.values())
    settled = sum(known.get(key) in (0.0, 1.0) for key in keys)
    assert not settled or (new == left and len(keys) - new - settled == still_open)


def test_questions_that_judge_are_renewed() -> None:
    of = pool(400)
    asked = [[question.key for question in of_round(of.judge, number, 30, 0)] for number in (1, 2, 3)]
    assert all(len(set(keys)) == 30 for keys in asked)
    assert not set(asked[0]) & set(asked[1])
    few = pool(60)
    assert {question.key for question in of_round(few.judge, 5, 500, 0)} == {question.key for question in few.judge}


def test_where_few_judge_bare_questions_are_held_out_too() -> None:
    """And only there: not beside a grader, and not beside 20 questions with right answers, or rows that were named."""
    several = questions(460, "yes")
    bare = questions(200)
    labelled = several[200:260]
    found = pool_of(labelled, bare, has_grader=False)
    assert len(found.judge) < 20
    apart = {side: {one.key for one in found.bare[side]} for side in (JUDGE, DEV)}
    assert apart[JUDGE] == {one.key for one in bare if one.side == JUDGE}
    assert apart[DEV] == {one.key for one in bare if one.side == DEV}
    assert not {one.key for one in (*found.learn, *found.judge, *found.dev)} & (apart[JUDGE] | apart[DEV])
    for other in (pool_of(labelled, bare, has_grader=True), pool_of(several[200:], bare, has_grader=False),
                  pool_of(labelled[1:], bare, False, held=labelled[:1])):
        assert not any(other.bare.values())


def test_files(tmp_path: Path, tokenizer: Tokenizer) -> None:
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
