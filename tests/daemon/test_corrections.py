"""Feedback that is read, edited and deleted, wrong answers with right ones, and what earlier versions kept."""

import json

import pytest
from services import as_version_5

from edgetune.daemon.learning.feedback import Feedback
from edgetune.daemon.learning.items import LARGEST, SHOWN
from edgetune.daemon.options import DaemonConfig
from edgetune.daemon.state.database import Store
from edgetune.daemon.state.holdout import open_holdout
from edgetune.errors import NotFoundError, TooLargeError, TooMuchError, UsageError


def opened(folder, **options):
    return Feedback(Store(folder), open_holdout(folder), DaemonConfig(**options))


@pytest.fixture
def feedback(tmp_path):
    return opened(tmp_path)


def asked(number):
    return [{"role": "user", "content": f"question {number}"}]


def give(feedback, count):
    """Ids of corrections, in order."""
    return [feedback.add(messages=asked(i), answer="no", correction=f"yes {i}", model="m").id for i in range(count)]


def learn(feedback, job, state="used"):
    feedback.assign(feedback.training_rows().taken, job)
    feedback.settle(job, state)


def learned(feedback):
    """What the next job learns or is judged by, by its question."""
    rows = feedback.training_rows()
    found = [feedback.row(row) for row in rows.new + rows.earlier + rows.held]
    return {row["messages"][0]["content"]: row["messages"][1]["content"] for row in found}


# ---- reading ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("version", [2, 4])
def test_a_list_shows_the_beginnings_of_question_and_answer(feedback, version):
    """As the whole rows have them; those of an earlier version are found by SQLite in the rows' JSON."""
    parts = [{"type": "text", "text": "what is é 😀?"}]
    history = [{"role": "system", "content": "be brief"}, *asked(1), {"role": "assistant", "content": "yes"}, *asked(2)]
    for given in ({"messages": history, "correction": "é" * 1000},
                  {"prompt": "p" * 1000, "correction": "\u0001 'x' 😀"},
                  {"messages": [{"role": "user", "content": parts}], "correction": "an \"e\""},
                  {"prompt": "", "correction": "x"}, {"prompt": "a", "answer": "b", "rating": "down"}):
        feedback.add(**given)
    if version == 2:
        feedback = as_version_2(feedback)
    headings = feedback.headings()
    assert headings == [item.heading for item in feedback.list()]
    down, empty, of_parts, prompt, chat = headings
    assert (chat.asked, chat.answer) == ("question 2", "é" * SHOWN)
    assert (prompt.asked, prompt.answer) == ("p" * SHOWN, "\u0001 'x' 😀")
    assert (of_parts.asked, of_parts.answer) == ("what is é 😀?", 'an "e"')
    assert (empty.asked, empty.answer) == ("", "x")
    assert (down.asked, down.answer) == ("a", "")


def as_version_2(feedback):
    """The same, opened again from such a database."""
    with feedback.store.write() as db:
        as_version_5(db)
        for statement in ("DROP TABLE questions", "DROP INDEX feedback_by_job",
                          "ALTER TABLE feedback DROP COLUMN rejected", "ALTER TABLE adapters DROP COLUMN name",
                          "ALTER TABLE feedback DROP COLUMN asked",
                          "ALTER TABLE feedback DROP COLUMN answer", "PRAGMA user_version = 2"):
            db.execute(statement)
    feedback.store.close()
    return opened(feedback.store.folder)


def test_what_cannot_be_read_is_listed_and_can_be_deleted(feedback):
    ids = give(feedback, 3)
    with feedback.store.write() as db:
        db.execute("UPDATE feedback SET row = '{' WHERE id = ?", (ids[0],))
        db.execute("UPDATE feedback SET row = '[]' WHERE id = ?", (ids[1],))
    feedback = as_version_2(feedback)
    assert [(found.asked, found.answer) for found in feedback.headings()] == [
        ("question 2", "yes 2"), (None, None), (None, None)]
    with pytest.raises(NotFoundError, match="damaged"):
        feedback.get(ids[0])
    for id in ids[:2]:
        feedback.delete(id)
    assert feedback.store.reasons() == []
    assert [item.id for item in feedback.list()] == ids[2:]


def test_a_database_of_version_2_keeps_its_sides(feedback):
    """They hold also after their feedback is deleted."""
    give(feedback, 20)
    with feedback.store.write() as db:
        db.execute("UPDATE feedback SET held = rowid IN (1, 2, 3)")
    feedback = as_version_2(feedback)
    for note in feedback.list():
        feedback.delete(note.id)
    give(feedback, 40)
    found = [note.held for note in feedback.list()][::-1]
    assert found[:20] == [True] * 3 + [False] * 17
    assert [sum(found[i : i + 5]) for i in range(20, 40, 5)] == [1] * 4


# ---- editing ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("state", ["new", "used", "aside", "withdrawn"])
def test_an_edit_is_the_latest_word(feedback, state):
    """It waits to be learned, whatever became of the earlier one, and keeps its id and its side."""
    ids = give(feedback, 10)
    if state in ("used", "aside"):
        learn(feedback, "job1", state)
    if state == "withdrawn":
        feedback.add(messages=asked(3), answer="yes 3", rating="down")
    old = feedback.get(ids[3])
    assert old.state == state
    feedback.add(messages=asked(3), correction="another answer")
    new = feedback.edit(ids[3], "edited")
    assert new == feedback.get(ids[3])
    assert (new.id, new.held, new.state, new.job, new.model) == (old.id, old.held, "new", None, "m")
    assert learned(feedback)["question 3"] == "edited"
    assert feedback.list()[0].id == ids[3]
    learn(feedback, "job2")
    assert learned(feedback)["question 3"] == "edited"


def test_right_answers_that_count_are_exported_with_the_wrong_ones(feedback):
    give(feedback, 1)
    feedback.add(messages=asked(0), answer="yes 0", correction="no, yes")  # withdraws the earlier one
    learn(feedback, "ftjob-0", "aside")
    for number in range(1, 40):  # more than are read at once; some are held out
        feedback.add(messages=asked(number), answer="no", correction=f"yes {number}")
    learn(feedback, "ftjob-1")
    feedback.add(prompt="which?", answer="this", rating="up")
    feedback.add(prompt="when?", answer="now", rating="down")
    feedback.add(prompt="what today?", answer="no", correction="soup", expires_in=60)
    *chats, last = feedback.answers()
    assert [(row["messages"][-1]["content"], row["rejected"]) for row in chats] == [
        (f"yes {number}", "no") for number in range(1, 40)]
    assert last == {"prompt": "which?", "completion": "this"}


def test_the_rest_of_a_row_stays_when_it_is_edited(feedback):
    tools = [{"type": "function", "function": {"name": "lamp"}}]
    chat = feedback.add(messages=asked(1), tools=tools, answer="on", rating="up")
    prompt = feedback.add(prompt="a", answer="b", correction="c", rating="down")
    edited = feedback.edit(chat.id, "off")
    assert edited.row == {"messages": [*asked(1), {"role": "assistant", "content": "off"}], "tools": tools}
    assert edited.rating is None  # that thumb was for the other answer
    assert feedback.edit(prompt.id, "d").row == {"prompt": "a", "completion": "d"}
    assert feedback.get(prompt.id).rating == "down"
    down = feedback.add(messages=asked(1), answer="left", rating="down")
    edited = feedback.edit(down.id, "right")
    assert (edited.answer, edited.rejected, edited.state, edited.rating) == ("right", "left", "new", "down")
    better = feedback.add(messages=asked(1), answer="right", rejected="up")
    edited = feedback.edit(better.id, "the right one")
    assert (edited.answer, edited.rejected, edited.is_choice) == ("the right one", "up", False)
    assert feedback.edit(better.id, "up").rejected is None
    feedback.delete(better.id)
    with pytest.raises(NotFoundError):
        feedback.get(better.id)


def test_what_cannot_be_edited(tmp_path):
    feedback = opened(tmp_path, feedback_rows=10)
    ids = give(feedback, 4)
    down = feedback.add(messages=asked(1), answer="on", rating="down")
    with feedback.store.write() as db:  # as an earlier version kept it
        db.execute("UPDATE feedback SET row = NULL, question = NULL, rejected = NULL WHERE id = ?", (down.id,))
    for id, text, kind, says in ((ids[0], " ", UsageError, "the correction is empty"),
                                 (down.id, "on", UsageError, "is a thumb down of an earlier version"),
                                 ("fb-none", "on", NotFoundError, "there is no feedback 'fb-none'"),
                                 (ids[0], "x" * LARGEST, TooLargeError, "at most 262144")):
        with pytest.raises(kind, match=says):
            feedback.edit(id, text)
    learn(feedback, "job1")
    give(feedback, 5)
    with pytest.raises(TooMuchError, match="5 rows of feedback"):
        feedback.edit(ids[0], "one more that waits")
    assert feedback.get(ids[0]).state == "used"
    assert len(feedback.list()) == 10


def test_an_edit_or_a_deletion_while_a_job_begins(feedback):
    """The job has read the earlier words: the new ones wait for the next job."""
    ids = give(feedback, 10)
    rows = feedback.training_rows()
    feedback.edit(ids[9], "edited")
    feedback.delete(ids[8])
    gone = [row for row in rows.taken if row.id in ids[8:]]
    for row in gone:
        with pytest.raises(TooMuchError, match="was removed while a job began; ask again"):
            feedback.row(row)
    feedback.assign(rows.taken, "job1")
    feedback.settle("job1", "used")
    assert feedback.get(ids[9]).state == "new"
    assert feedback.waiting() == 1


# ---- deleting --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("state", ["new", "used"])
def test_what_is_deleted_is_not_learned_again(feedback, state):
    ids = give(feedback, 20)
    if state == "used":
        learn(feedback, "job1")
    for id in ids[::2]:
        feedback.delete(id)
    assert learned(feedback) == {f"question {i}": f"yes {i}" for i in range(1, 20, 2)}


def test_nothing_of_it_remains_on_the_disk(tmp_path):
    """Whatever its size: rows of a page of the database, and rows of many."""
    feedback = opened(tmp_path)
    secret = "my number is "
    ids = []
    for i in range(60):
        text = f"{secret}{i:04} " * (200 if i % 7 == 0 else 1)
        ids.append(feedback.add(messages=[{"role": "user", "content": text}], correction=f"{secret} too").id)
    feedback.edit(ids[1], "said otherwise")
    learn(feedback, "job1")
    kept = feedback.add(prompt="what stays", correction="stays").id
    for id in ids:
        feedback.delete(id)
    found = b"".join(path.read_bytes() for path in tmp_path.rglob("*") if path.is_file())
    assert b"what stays" in found
    assert secret.encode() not in found
    assert [item.id for item in feedback.list()] == [kept]


def test_what_else_the_daemon_has_of_it_is_said(feedback):
    ids = give(feedback, 10)
    held = {id for id in ids if feedback.get(id).held}
    first, second = [id for id in ids if id not in held][:2]
    assert feedback.delete(first) == ""
    feedback.assign(feedback.training_rows().taken, "job1")
    assert feedback.delete(second) == (
        "job1 is not finished and learns it all the same; cancel it, and the next training is without it")
    judge = held.pop()
    assert feedback.delete(judge).startswith("job1 is not finished and is evaluated by it")
    feedback.settle("job1", "used")
    third = next(id for id in ids if id not in (first, second, judge) and not feedback.get(id).held)
    assert feedback.delete(third) == "adapters remain that learned it, from job1 on; the next training is without it"
    assert feedback.delete(held.pop()) == ""


def test_what_is_taken_back_brings_nothing_earlier_back(feedback):
    """By deleting it or by a thumb down; deleting what it replaced changes nothing."""
    first, second, other = (feedback.add(messages=asked(number), answer="no", correction=right)
                            for number, right in ((0, "bulb"), (0, "lamp"), (1, "bulb")))
    feedback.delete(second.id)
    assert (feedback.get(first.id).state, feedback.get(other.id).state) == ("withdrawn", "new")
    assert learned(feedback) == {"question 1": "bulb"}
    for right in ("bulb", "lamp"):
        feedback.add(messages=asked(0), answer="no", correction=right)
    learn(feedback, "ftjob-1")
    feedback.add(messages=asked(0), answer="lamp", rating="down")
    assert learned(feedback) == {"question 1": "bulb"}
    earlier, last = (feedback.add(messages=asked(0), answer="lamp", correction=right) for right in ("torch", "light"))
    feedback.delete(earlier.id)
    assert learned(feedback) == {"question 0": "light", "question 1": "bulb"}
    feedback.delete(last.id)
    assert learned(feedback) == {"question 1": "bulb"}


# ---- what is known to be wrong ---------------------------------------------------------------------------------------


def test_both_answers_are_kept_whole_and_the_better_one_is_learned(feedback):
    worse = "right " * 200
    made = feedback.add(messages=asked(1), answer="left", rejected=worse, model="m")
    assert feedback.list() == [made] == [feedback.get(made.id)]
    assert (made.rating, made.answer, made.rejected) == ("up", "left", worse)
    assert (made.learns, made.is_choice) == (True, True)
    assert [row.id for row in feedback.training_rows().taken] == [made.id]
    assert feedback.headings() == [made.heading]
    assert made.heading.rejected == worse[:300]
    given = [({"answer": "off", "correction": "on"}, ("on", "off")), ({"answer": "on", "rating": "up"}, ("on", None)),
             ({"answer": "off", "rating": "down"}, ("", "off")), ({"answer": "", "rating": "down"}, ("", None)),
             ({"answer": "on", "correction": "on "}, ("on ", None)),
             ({"answer": " ", "correction": "on"}, ("on", None))]
    for number, (said, known) in enumerate(given):
        item = feedback.add(prompt=f"lamp {number}", **said)
        assert (item.answer, item.rejected) == known
        assert not item.is_choice
        assert feedback.get(item.id) == item


def test_a_thumb_down_holds_until_something_else_is_said_of_its_answer(feedback):
    def states():
        return [item.state for item in feedback.list()][::-1]

    feedback.add(messages=asked(1), answer="left", rating="down")
    assert feedback.unusable() == 1
    feedback.add(messages=asked(1), answer="middle", rating="down")
    assert states() == ["counted", "counted"]
    feedback.add(messages=asked(1), answer="left ", rating="up")
    assert states() == ["withdrawn", "counted", "new"]
    feedback.add(messages=asked(1), answer="middle", correction="right")
    assert states() == ["withdrawn", "withdrawn", "new", "new"]
    assert feedback.unusable() == 0


def test_choices_of_version_4_keep_their_worse_answer(feedback, tmp_path):
    """It had a row of the table for either answer, both with one `pair`."""
    chat = feedback.add(messages=asked(1), answer="left", rejected="right")
    plain = feedback.add(prompt="lamp", answer="é", rejected="ö")
    alone = feedback.add(prompt="lamp", answer="ü", rating="up")
    with feedback.store.write() as db:
        as_version_5(db)
        db.execute("ALTER TABLE feedback ADD COLUMN pair TEXT")
        for item in (chat, plain):
            assert item.row
            row = {"prompt": "lamp", "completion": "ö"}
            if item is chat:
                row = {"messages": [*asked(1), {"role": "assistant", "content": "right"}]}
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
