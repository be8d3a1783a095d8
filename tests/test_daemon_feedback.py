"""edgetune.daemon.feedback: what is learned of what people say, and which rows a job gets."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from edgetune.daemon.feedback import Feedback, is_held, question
from edgetune.daemon.gate import FRESH, unmarked
from edgetune.daemon.store import Store
from edgetune.errors import DataError, NotFoundError, UsageError
from edgetune.rows import check_row

ASKED = [{"role": "user", "content": "lamp on"}]


@pytest.fixture
def feedback(tmp_path: Path) -> Feedback:
    return Feedback(Store(tmp_path))


def answered(text: str) -> dict[str, Any]:
    return {"messages": [*ASKED, {"role": "assistant", "content": text}]}


def give(feedback: Feedback, numbers: range, answer: str = "yes") -> None:
    for i in numbers:
        feedback.add(messages=[{"role": "user", "content": f"question {i}"}], answer="no", correction=f"{answer} {i}")


def questions(rows: list[dict[str, Any]]) -> set[int]:
    return {int(row["messages"][0]["content"].split()[1]) for row in rows}


def test_what_is_learned(feedback: Feedback) -> None:
    add = feedback.add
    assert add(messages=ASKED, answer="off", correction="on", rating="down").row == answered("on")
    assert add(messages=ASKED, answer="on", rating="up").row == answered("on")
    assert add(prompt="2+2=", answer="5", correction="4").row == {"prompt": "2+2=", "completion": "4"}
    down = add(messages=ASKED, answer="off", rating="down", model="m")
    assert down.row is None
    assert "a correction would say" in down.reason
    assert down.model == "m"
    assert feedback.list()[0] == down
    assert sum(feedback.counts().values()) == 3


def test_only_the_last_answer_of_a_conversation_is_learned(feedback: Feedback) -> None:
    history = [*ASKED, {"role": "assistant", "content": "done"}, {"role": "user", "content": "and off"}]
    tools = [{"type": "function", "function": {"name": "lamp"}}]
    row = feedback.add(messages=history, tools=tools, answer="no", correction="off").row
    assert row is not None
    assert check_row(row) == "messages"
    assert [message.get("weight", 1) for message in row["messages"] if message["role"] == "assistant"] == [0, 1]
    assert row["tools"] == tools


@pytest.mark.parametrize(("given", "kind", "says"), [
    ({"messages": ASKED, "answer": "on"}, UsageError, "neither rating nor correction"),
    ({"messages": ASKED, "answer": "on", "rating": "great"}, UsageError, "rating is 'great'"),
    ({"messages": ASKED, "answer": "on", "rating": "up", "correction": "off"}, UsageError, "another answer"),
    ({"messages": ASKED, "answer": "on", "correction": " "}, UsageError, "is empty"),
    ({"messages": ASKED, "answer": "", "rating": "up"}, UsageError, "is empty"),
    ({"messages": ASKED, "prompt": "x", "correction": "y"}, UsageError, "or both"),
    ({"correction": "y"}, UsageError, "neither messages nor a prompt"),
    ({"messages": [], "correction": "y"}, DataError, "begins with an assistant message"),
    ({"messages": ["x"], "correction": "y"}, DataError, "messages\\[0\\] is a JSON string"),
    ({"messages": ASKED, "correction": "\ud800"}, DataError, "surrogate"),
    ({"messages": ASKED, "rating": "down", "model": "\ud800"}, DataError, "surrogate"),
])
def test_what_is_refused(feedback: Feedback, given: dict[str, Any], kind: type[Exception], says: str) -> None:
    with pytest.raises(kind, match=says):
        feedback.add(**given)
    assert feedback.list() == []


def test_a_question_stays_on_its_side(feedback: Feedback) -> None:
    give(feedback, range(200))
    give(feedback, range(200), "no,")
    sides: dict[str, set[bool]] = {}
    for note in feedback.list(limit=1000):
        assert note.row is not None
        assert note.held == is_held(note.row)
        sides.setdefault(question(note.row), set()).add(note.held)
    assert len(sides) == 200
    assert all(len(side) == 1 for side in sides.values())
    assert 20 <= sum(side == {True} for side in sides.values()) <= 60  # one in five, give or take three deviations


def test_rounds(feedback: Feedback) -> None:
    """Three rounds: used, set aside, and one that is asked for before it is settled."""
    give(feedback, range(50))
    first = feedback.lesson()
    assert not first.earlier
    assert questions(first.new) | questions(first.held) == set(range(50))
    assert all(FRESH in row for row in first.held)
    feedback.assign(first.ids, "job1")
    give(feedback, range(50, 60))  # while it learns
    feedback.settle("job1", "used")

    second = feedback.lesson()
    assert questions(second.new) | {i for i in questions(second.held) if i >= 50} == set(range(50, 60))
    assert questions(second.earlier) == questions(first.new)
    assert [FRESH in row for row in second.held] == sorted(FRESH in row for row in second.held)  # earlier ones first
    assert {i for row in second.held if FRESH not in row for i in questions([row])} == questions(first.held)
    feedback.assign(second.ids, "job2")
    assert feedback.unsettled() == ["job2"]
    feedback.settle("job2", "aside")
    assert feedback.counts()["aside"] == 10

    third = feedback.lesson()
    assert not third.new
    assert not third.ids
    assert questions(third.held) == questions(first.held)
    assert feedback.unsettled() == []
    assert {note.reason for note in feedback.list(limit=10)} == {"set aside: what job2 learned was found worse"}


def test_a_job_that_came_to_nothing_leaves_its_rows_new(feedback: Feedback) -> None:
    give(feedback, range(10))
    feedback.assign(feedback.lesson().ids, "job1")
    feedback.settle("job1", "new")
    assert len(feedback.lesson().ids) == 10
    assert feedback.unsettled() == []


def test_the_last_answer_to_a_question_counts(feedback: Feedback) -> None:
    give(feedback, range(20), "old")
    feedback.assign(feedback.lesson().ids, "job1")
    feedback.settle("job1", "used")
    give(feedback, range(20), "newer")
    give(feedback, range(20), "newest")
    lesson = feedback.lesson()
    assert not lesson.earlier  # all of them are answered again
    assert len(lesson.ids) == 40
    said = [row["messages"][-1]["content"].split()[0] for row in lesson.new]
    assert set(said) == {"newest"}
    judges = [unmarked(row)["messages"][-1]["content"].split()[0] for row in lesson.held]
    assert sorted(set(judges)) == ["newest", "old"]  # what was established judges too, until the round has passed
    feedback.assign(lesson.ids, "job2")
    feedback.settle("job2", "used")
    assert {row["messages"][-1]["content"].split()[0] for row in feedback.lesson().held} == {"newest"}


def test_pages(feedback: Feedback) -> None:
    give(feedback, range(5))
    newest = feedback.list(limit=2)
    assert [note.id for note in feedback.list(after=newest[-1].id, limit=2)] == [n.id for n in feedback.list()[2:4]]
    with pytest.raises(NotFoundError):
        feedback.list(after="fb-none")
