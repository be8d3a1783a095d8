"""What is known to be wrong beside what is right: choices between two answers, corrections, and thumbs down."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from services import as_version_5, open_service

from edgetune.daemon.learning.feedback import Feedback
from edgetune.daemon.options import DaemonConfig
from edgetune.daemon.state.database import Store
from edgetune.daemon.state.holdout import open_holdout
from edgetune.errors import NotFoundError, UsageError

ASKED = [{"role": "user", "content": "which lamp?"}]


def opened(folder: Path) -> Feedback:
    return Feedback(Store(folder), open_holdout(folder), DaemonConfig())


@pytest.fixture
def feedback(tmp_path: Path) -> Feedback:
    return opened(tmp_path)


def test_both_answers_are_kept_whole_and_the_better_one_is_learned(feedback: Feedback) -> None:
    worse = "right " * 200
    made = feedback.add(messages=ASKED, answer="left", rejected=worse, model="m")
    assert feedback.list() == [made] == [feedback.get(made.id)]
    assert (made.rating, made.answer, made.rejected) == ("up", "left", worse)
    assert (made.learns, made.is_choice) == (True, True)
    assert [row.id for row in feedback.training_rows().taken] == [made.id]
    assert feedback.headings() == [made.heading]
    assert made.heading.rejected == worse[:300]


def test_what_was_wrong_is_kept_beside_what_is_right(feedback: Feedback) -> None:
    given = [({"answer": "off", "correction": "on"}, ("on", "off")), ({"answer": "on", "rating": "up"}, ("on", None)),
             ({"answer": "off", "rating": "down"}, ("", "off")), ({"answer": "", "rating": "down"}, ("", None)),
             ({"answer": "on", "correction": "on "}, ("on ", None)),
             ({"answer": " ", "correction": "on"}, ("on", None))]
    for number, (said, known) in enumerate(given):
        item = feedback.add(prompt=f"lamp {number}", **said)
        assert (item.answer, item.rejected) == known
        assert not item.is_choice
        assert feedback.get(item.id) == item


def test_the_worse_answer_is_not_recalled_and_takes_earlier_praise_back(tmp_path: Path) -> None:
    with open_service(tmp_path, context=512) as service:
        service.feedback.add(messages=ASKED, answer="right", rating="up")
        service.feedback.add(messages=ASKED, answer="left", rejected="right")
        assert service.chat(ASKED, max_tokens=32).text() == "left"
        assert [item.state for item in service.feedback.list()] == ["new", "withdrawn"]
        service.feedback.add(messages=ASKED, answer="left", rating="down")
        assert service.recall.find({"messages": ASKED}) is None


def test_a_thumb_down_holds_until_something_else_is_said_of_its_answer(feedback: Feedback) -> None:
    def states() -> list[str]:
        return [item.state for item in feedback.list()][::-1]

    feedback.add(messages=ASKED, answer="left", rating="down")
    assert feedback.unusable() == 1
    feedback.add(messages=ASKED, answer="middle", rating="down")
    assert states() == ["counted", "counted"]
    feedback.add(messages=ASKED, answer="left ", rating="up")
    assert states() == ["withdrawn", "counted", "new"]
    feedback.add(messages=ASKED, answer="middle", correction="right")
    assert states() == ["withdrawn", "withdrawn", "new", "new"]
    assert feedback.unusable() == 0


def test_an_edited_thumb_down_is_a_correction(feedback: Feedback) -> None:
    down = feedback.add(messages=ASKED, answer="left", rating="down")
    edited = feedback.edit(down.id, "right")
    assert (edited.answer, edited.rejected, edited.state, edited.rating) == ("right", "left", "new", "down")
    better = feedback.add(messages=ASKED, answer="right", rejected="up")
    edited = feedback.edit(better.id, "the right one")
    assert (edited.answer, edited.rejected, edited.is_choice) == ("the right one", "up", False)
    assert feedback.edit(better.id, "up").rejected is None
    feedback.delete(better.id)
    with pytest.raises(NotFoundError):
        feedback.get(better.id)


@pytest.mark.parametrize(("given", "match"), [
    ({"answer": "left", "rejected": "left "}, "are the same"),
    ({"answer": "left", "rejected": "right", "rating": "down"}, "rated 'down'"),
    ({"answer": "left", "rejected": "right", "correction": "both"}, "corrected"),
    ({"answer": "  ", "rejected": "right"}, "empty")])
def test_what_contradicts_itself_is_refused(feedback: Feedback, given: dict[str, str], match: str) -> None:
    with pytest.raises(UsageError, match=match):
        feedback.add(messages=ASKED, **given)
    assert feedback.list() == []


def test_choices_of_version_4_keep_their_worse_answer(feedback: Feedback, tmp_path: Path) -> None:
    """It had a row of the table for either answer, both with one `pair`."""
    chat = feedback.add(messages=ASKED, answer="left", rejected="right")
    plain = feedback.add(prompt="lamp", answer="é", rejected="ö")
    alone = feedback.add(prompt="lamp", answer="ü", rating="up")
    with feedback.store.write() as db:
        as_version_5(db)
        db.execute("ALTER TABLE feedback ADD COLUMN pair TEXT")
        for item in (chat, plain):
            assert item.row
            row = {"prompt": "lamp", "completion": "ö"}
            if item is chat:
                row = {"messages": [*ASKED, {"role": "assistant", "content": "right"}]}  # type: ignore[dict-item]
            db.execute("UPDATE feedback SET pair = id WHERE id = ?", (item.id,))
            db.execute("INSERT INTO feedback (id, created_at, rating, model, row, held, state, question, size, pair) "
                       "VALUES (?, 1, 'down', '', ?, 0, 'counted', ?, 9, ?)",
                       (f"{item.id}-worse", json.dumps(row), item.question, item.id))
        db.execute("ALTER TABLE feedback DROP COLUMN rejected")
        db.execute("CREATE INDEX feedback_by_pair ON feedback(pair)")
        db.execute("PRAGMA user_version = 4")
    feedback.store.close()
    assert opened(tmp_path).list()[::-1] == [chat, plain, alone]
    assert opened(tmp_path).headings()[::-1] == [item.heading for item in (chat, plain, alone)]
