"""Which of two answers is better: two pieces of feedback with one `pair`, of which the better one is learned."""

from __future__ import annotations

from pathlib import Path

import pytest
from services import open_service

from edgetune.daemon.learning.feedback import Feedback
from edgetune.daemon.options import DaemonConfig
from edgetune.daemon.state.database import Store
from edgetune.daemon.state.holdout import open_holdout
from edgetune.errors import NotFoundError, UsageError

ASKED = [{"role": "user", "content": "which lamp?"}]


@pytest.fixture
def feedback(tmp_path: Path) -> Feedback:
    return Feedback(Store(tmp_path), open_holdout(tmp_path), DaemonConfig())


def test_both_answers_are_kept_whole_and_the_better_one_is_learned(feedback: Feedback) -> None:
    made = feedback.add(messages=ASKED, answer="left", rejected="right " * 200, model="m")
    better, worse = feedback.list()
    assert better == made
    assert (better.rating, worse.rating) == ("up", "down")
    assert better.pair == worse.pair is not None
    assert [item.row["messages"][-1]["content"] for item in (better, worse)] == ["left", "right " * 200]
    assert [item.learns for item in (better, worse)] == [True, False]
    assert better.held == worse.held  # a question has one side
    assert feedback.waiting() == 1
    assert [row.id for row in feedback.training_rows().taken] == [better.id]
    assert feedback.headings() == [better.heading, worse.heading]
    assert worse.heading.answer == ("right " * 200)[:300]
    assert "worse of two" in worse.reason


def test_the_worse_answer_is_not_recalled_and_takes_earlier_praise_back(tmp_path: Path) -> None:
    with open_service(tmp_path, context=512) as service:
        service.feedback.add(messages=ASKED, answer="right", rating="up")
        service.feedback.add(messages=ASKED, answer="left", rejected="right")
        assert service.chat(ASKED, max_tokens=32).text() == "left"
        assert [item.state for item in service.feedback.list()] == ["new", "counted", "withdrawn"]
        service.feedback.add(messages=ASKED, answer="left", rating="down")
        assert service.recall.find({"messages": ASKED}) is None


def test_both_are_deleted_together_and_the_worse_is_not_edited(feedback: Feedback) -> None:
    for which in (0, 1):
        other = feedback.add(prompt="other", answer="x", rejected="y")
        feedback.add(messages=ASKED, answer="left", rejected="right")
        pair = feedback.list()[:2]
        with pytest.raises(UsageError, match="nothing is learned"):
            feedback.edit(pair[1].id, "both")
        feedback.delete(pair[which].id)
        for item in pair:
            with pytest.raises(NotFoundError):
                feedback.get(item.id)
        assert len(feedback.list()) == 2
        feedback.delete(other.id)


def test_a_better_one_that_is_edited_is_still_the_better_one(feedback: Feedback) -> None:
    made = feedback.add(messages=ASKED, answer="left", rejected="right")
    edited = feedback.edit(made.id, "the left one")
    assert edited.pair == made.pair
    assert [item.pair for item in feedback.list()] == [made.pair] * 2


@pytest.mark.parametrize(("given", "match"), [
    ({"answer": "left", "rejected": "left "}, "are the same"),
    ({"answer": "left", "rejected": "right", "rating": "down"}, "rated 'down'"),
    ({"answer": "left", "rejected": "right", "correction": "both"}, "corrected"),
    ({"answer": "  ", "rejected": "right"}, "empty")])
def test_what_contradicts_itself_is_refused(feedback: Feedback, given: dict[str, str], match: str) -> None:
    with pytest.raises(UsageError, match=match):
        feedback.add(messages=ASKED, **given)
    assert feedback.list() == []
