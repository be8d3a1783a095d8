"""edgetune.daemon.learning.feedback: what is learned of what people say, and which rows a job gets."""

import json
import sqlite3
import tarfile
from contextlib import closing
from itertools import product
from pathlib import Path

import pytest

from edgetune.daemon.learning.feedback import Feedback
from edgetune.daemon.learning.items import LARGEST
from edgetune.daemon.options import DaemonConfig
from edgetune.daemon.state.database import NAME, Store
from edgetune.daemon.state.holdout import MOST, open_holdout
from edgetune.data.question import question_digest
from edgetune.data.rows import check_row
from edgetune.errors import DataError, TooLargeError, TooMuchError, UsageError

ASKED = [{"role": "user", "content": "lamp on"}]


def opened(folder, **options):
    store = Store(folder)
    store.read("PRAGMA synchronous = OFF")  # no power cut is simulated here
    return Feedback(store, open_holdout(folder), DaemonConfig(**options))


@pytest.fixture
def feedback(tmp_path):
    return opened(tmp_path)


def answered(text):
    return {"messages": [*ASKED, {"role": "assistant", "content": text}]}


def give(feedback, numbers, answer="yes"):
    for i in numbers:
        feedback.add(messages=[{"role": "user", "content": f"question {i}"}], answer="no", correction=f"{answer} {i}")


def learn(feedback, job):
    """What waits is learned by a job that passes."""
    feedback.assign(feedback.training_rows().taken, job)
    feedback.settle(job, "used")


def questions(feedback, rows):
    return {int(feedback.row(row)["messages"][0]["content"].split()[1]) for row in rows}


def words(feedback, rows):
    """The first of each answer."""
    return [feedback.row(row)["messages"][-1]["content"].split()[0] for row in rows]


def test_what_is_learned(feedback):
    add = feedback.add
    assert add(messages=ASKED, answer="off", correction="on", rating="down").row == answered("on")
    assert add(messages=ASKED, answer="on", rating="up").row == answered("on")
    assert add(prompt="2+2=", answer="5", correction="4").row == {"prompt": "2+2=", "completion": "4"}
    down = add(messages=ASKED, answer="off", rating="down", model="m")
    assert (down.row, down.rejected, down.learns) == (answered(""), "off", False)
    assert "a correction would say" in down.reason
    assert down.model == "m"
    assert feedback.list()[0] == down
    assert sum(feedback.counts().values()) == 3
    history = [*ASKED, {"role": "assistant", "content": "done"}, {"role": "user", "content": "and off"}]
    tools = [{"type": "function", "function": {"name": "lamp"}}]
    row = feedback.add(messages=history, tools=tools, answer="no", correction="off").row
    assert row is not None
    assert check_row(row) == "messages"
    assert [message.get("weight", 1) for message in row["messages"] if message["role"] == "assistant"] == [0, 1]
    assert row["tools"] == tools
    with pytest.raises(DataError, match=r"the answer calls 'fan', which is none of the row's tools \(lamp\)"):
        feedback.add(messages=ASKED, tools=tools, answer="no", correction='{"name": "fan", "arguments": {}}')


@pytest.mark.parametrize(("given", "kind", "says"), [
    ({"messages": ASKED, "answer": "on"}, UsageError, "neither rating nor correction"),
    ({"messages": ASKED, "answer": "on", "rating": "great"}, UsageError, "rating is 'great'"),
    ({"messages": ASKED, "answer": "on", "rating": "up", "correction": "off"}, UsageError, "another answer"),
    ({"messages": ASKED, "answer": "on", "rating": "down", "correction": "on "}, UsageError, "the same answer"),
    ({"messages": ASKED, "answer": "on", "correction": " "}, UsageError, "is empty"),
    ({"messages": ASKED, "answer": "", "rating": "up"}, UsageError, "is empty"),
    ({"messages": ASKED, "prompt": "x", "correction": "y"}, UsageError, "or both"),
    ({"correction": "y"}, UsageError, "neither messages nor a prompt"),
    ({"messages": [], "correction": "y"}, DataError, "begins with an assistant message"),
    ({"messages": ["x"], "correction": "y"}, DataError, "messages\\[0\\] is a JSON string"),
    ({"messages": ASKED, "correction": "\ud800"}, DataError, "surrogate"),
    ({"messages": ASKED, "rating": "down", "model": "\ud800"}, DataError, "surrogate"),
    ({"messages": ASKED, "answer": "left", "rejected": "left "}, UsageError, "are the same"),
    ({"messages": ASKED, "answer": "left", "rejected": "right", "rating": "down"}, UsageError, "rated 'down'"),
    ({"messages": ASKED, "answer": "left", "rejected": "right", "correction": "both"}, UsageError, "corrected"),
    ({"messages": ASKED, "answer": "  ", "rejected": "right"}, UsageError, "empty"),
])
def test_what_is_refused(feedback, given, kind, says):
    with pytest.raises(kind, match=says):
        feedback.add(**given)
    assert feedback.list() == []


def test_a_piece_has_a_limit_however_it_comes(feedback):
    """An app that embeds the service gives it without HTTP. All parts count together."""
    most = LARGEST - len(json.dumps([None, "", None, "", "", ""]))
    assert feedback.add(prompt="", answer="", correction="é" * (most // 2)).row
    for given in ({"prompt": "a" * most, "correction": "b"}, {"prompt": "", "answer": "a" * (most + 1), "rating": "up"},
                  {"prompt": "", "answer": "a" * (most + 1), "rating": "down"},
                  {"messages": ASKED, "correction": "x", "tools": [{"a": "b" * most}]},
                  {"messages": ASKED, "rating": "down", "model": "m" * most}):
        with pytest.raises(TooLargeError, match=f"the feedback has [0-9]+ bytes, at most {LARGEST} are kept; send a"):
            feedback.add(**given)
    with pytest.raises(DataError, match="not what JSON can hold"):
        feedback.add(messages=[{**ASKED[0], "note": {1, 2}}], correction="on")
    assert len(feedback.list()) == 1


# ---- who judges ------------------------------------------------------------------------------------------------------


def sides(feedback):
    found = {}
    for note in feedback.list(limit=10_000):
        assert note.row is not None
        found.setdefault(question_digest(note.row, by_shape=True), set()).add(note.held)
    return found


def test_of_each_five_questions_one_is_held_out(tmp_path):
    """Whatever else is said meanwhile, and after a restart: what 20 people said holds out 4."""
    for first in range(0, 60, 3):
        feedback = opened(tmp_path)
        give(feedback, range(first, first + 3))
        give(feedback, range(first // 2, first // 2 + 2), "again")
        feedback.add(messages=[{"role": "user", "content": f"thumb {first}"}], answer="on", rating="down")
    found = sides_in_order(feedback)
    assert len(found) == 60
    assert [sum(found[i : i + 5]) for i in range(0, 60, 5)] == [1] * 12
    assert len({found[i : i + 5].index(True) for i in range(0, 60, 5)}) > 2  # not always the same of the five
    assert all(len(side) == 1 for side in sides(feedback).values())


def sides_in_order(feedback):
    """Of the questions, as they arrived."""
    found = {}
    for note in feedback.list(limit=10_000)[::-1]:
        if note.learns:
            found.setdefault(note.question, note.held)
    return [*found.values()]


def test_nobody_outside_knows_who_judges(tmp_path):
    """Two daemons that were told the same hold out other questions: the key decides, which only the owner can read."""
    both = []
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        give(opened(tmp_path / name), range(100))
        both.append(sides(opened(tmp_path / name)))
    assert both[0].keys() == both[1].keys()
    assert sum(both[0][name] != both[1][name] for name in both[0]) > 10  # of 100, 32 on average
    assert (tmp_path / "a" / "holdout.key").stat().st_mode & 0o777 == 0o600


def test_neither_deleting_nor_a_lost_key_moves_a_question(tmp_path):
    """Else a client could draw again until a question is on the side that it wants."""
    feedback = opened(tmp_path)
    give(feedback, range(50))
    before = sides(feedback)
    for note in feedback.list(limit=100):
        feedback.delete(note.id)
    give(feedback, range(49, -1, -1))
    assert sides(feedback) == before
    (tmp_path / "holdout.key").write_bytes(b"cut off")
    feedback = opened(tmp_path)
    give(feedback, range(50), "no,")
    assert sides(feedback) == before


def test_rows_of_the_old_version_stay_on_their_side(tmp_path):
    """And what was said then can be taken back now. Its sides were computable; they hold for its questions."""
    with tarfile.open(Path(__file__).parents[1] / "fixtures" / "states-0.1.0.tar.xz") as archive:
        archive.extractall(tmp_path, filter="data")
    folder = tmp_path / "daemon" / "state"
    with closing(sqlite3.connect(folder / NAME)) as db:
        before = db.execute("SELECT id, row, held, state FROM feedback ORDER BY rowid").fetchall()
    assert len(before) == 6
    feedback = opened(folder)
    notes = feedback.list()[::-1]
    assert [(note.id, note.row, note.held, note.state) for note in notes] == [
        (id, json.loads(row), bool(held), state) for id, row, held, state in before]
    rows = [note.row for note in notes if note.row]
    for note, row in zip(notes, rows, strict=True):
        assert feedback.add(prompt=row["prompt"], correction="another").held == note.held
    feedback.add(prompt=rows[0]["prompt"], answer=rows[0]["completion"], rating="down")
    assert {note.id: note.state for note in feedback.list()}[notes[0].id] == "withdrawn"


@pytest.mark.dev
def test_a_flood_does_not_displace_the_judges_of_earlier_rounds(feedback):
    """They share the places: by a count by hand 3 small rounds whole, the 2 large ones half of what is left each."""
    give(feedback, range(60))
    learn(feedback, "job1")
    give(feedback, range(100, 160))
    learn(feedback, "job2")
    established = questions(feedback, feedback.training_rows().established)
    assert 0 < len(established) < MOST // 2
    give(feedback, range(1000, 2600))  # some 320 of these are held out
    flooded = feedback.training_rows()
    assert questions(feedback, flooded.established) == established
    assert len(flooded.held) == MOST
    learn(feedback, "flood")  # had it passed, it could not displace them in the next round either
    give(feedback, range(3000, 3100))
    after = feedback.training_rows()
    assert established < questions(feedback, after.established)
    assert after.fresh
    assert len(after.held) == MOST
    names = {"a": 10, "b": 500, "c": 20, "d": 30, "e": 400}
    groups = {group: [f"{group}{i}" for i in range(size)] for group, size in names.items()}
    chosen = feedback.holdout.spread(groups, 256)
    counts = {group: sum(name.startswith(group) for name in chosen) for group in names}
    assert counts == {"a": 10, "b": 98, "c": 20, "d": 30, "e": 98}
    assert feedback.holdout.spread(groups, 10_000) == {name for group in groups.values() for name in group}


# ---- a later word takes back an earlier one --------------------------------------------------------------------------

WORDS = {
    "A is right": {"answer": "A", "rating": "up"},
    "A is wrong": {"answer": "A", "rating": "down"},
    "B, not A": {"answer": "A", "correction": "B"},
    "B, A is wrong": {"answer": "A", "rating": "down", "correction": "B"},
    "B is right": {"answer": "B ", "rating": "up"},
    "A, not B": {"answer": "B", "correction": "A"},
    "B is wrong": {"answer": "B", "rating": "down"},
}


def believed(words):
    """What these words leave as right: the newest answer. Who calls it wrong leaves nothing of what it replaced."""
    right = []
    for word in words:
        wrong = {"A is wrong": "A", "B, not A": "A", "B, A is wrong": "A", "A, not B": "B", "B is wrong": "B"}.get(word)
        while wrong in right:
            del right[0]
        said = {"A is right": "A", "B, not A": "B", "B, A is wrong": "B", "B is right": "B", "A, not B": "A"}.get(word)
        right += [said] if said else []
    return right[-1] if right else None


@pytest.mark.dev
@pytest.mark.parametrize("learned_after", [0, 1, 2, None])
def test_all_orders_of_words_on_an_answer(feedback, learned_after):
    """Each order of three words, on a question of its own; learned after the first, or second, or never."""
    orders = list(product(WORDS, repeat=3))
    for turn in range(3):
        if turn == learned_after:
            learn(feedback, f"job{turn}")
        for number, words in enumerate(orders):
            feedback.add(messages=[{"role": "user", "content": f"question {number}"}], **WORDS[words[turn]])
    rows = feedback.training_rows()
    found = {}
    for part in (rows.earlier, rows.new, rows.established, rows.fresh):
        for row in map(feedback.row, part):
            found[int(row["messages"][0]["content"].split()[1])] = row["messages"][-1]["content"].strip()
    assert found == {number: right for number, words in enumerate(orders) if (right := believed(words))}
    assert len(rows.held) < MOST


def test_words_on_prompts_and_conversations_do_not_meet(feedback):
    """A word speaks of the very question: another history is another question."""
    history = [*ASKED, {"role": "assistant", "content": "done"}, {"role": "user", "content": "lamp on"}]
    feedback.add(messages=ASKED, answer="on", rating="up")
    feedback.add(messages=history, answer="on", rating="down")
    feedback.add(prompt="lamp on", answer="on", rating="down")
    assert [note.state for note in feedback.list()] == ["counted", "counted", "new"]
    feedback.add(messages=ASKED, answer="on", rating="down")
    assert feedback.list()[-1].reason == "replaced by newer feedback on the same answer"
    assert feedback.counts() == {"new": 0, "used": 0, "held": 0, "aside": 0, "withdrawn": 1}


# ---- rounds ----------------------------------------------------------------------------------------------------------


def test_rounds(feedback):
    """Three rounds: used, set aside, and one that is asked for before it is settled."""
    give(feedback, range(50))
    first = feedback.training_rows()
    assert not first.earlier
    assert questions(feedback, first.new) | questions(feedback, first.held) == set(range(50))
    assert not first.established
    assert first.held == first.fresh
    feedback.assign(first.taken, "job1")
    give(feedback, range(50, 60))  # while it learns
    feedback.settle("job1", "used")

    second = feedback.training_rows()
    of_this_round = {i for i in questions(feedback, second.held) if i >= 50}
    assert questions(feedback, second.new) | of_this_round == set(range(50, 60))
    assert questions(feedback, second.earlier) == questions(feedback, first.new)
    assert second.held == second.established + second.fresh
    assert questions(feedback, second.established) == questions(feedback, first.held)
    assert not questions(feedback, second.fresh) & questions(feedback, first.held)
    feedback.assign(second.taken, "job2")
    assert feedback.unsettled() == ["job2"]
    feedback.settle("job2", "aside")
    assert feedback.counts()["aside"] == 10

    third = feedback.training_rows()
    assert not third.new
    assert not third.taken
    assert questions(feedback, third.held) == questions(feedback, first.held)
    assert feedback.unsettled() == []
    assert {note.reason for note in feedback.list(limit=10)} == {"set aside: what job2 learned was found worse"}
    give(feedback, range(60, 70))
    taken = feedback.training_rows().taken
    feedback.assign(taken, "job3")
    feedback.settle("job3", "new")  # it came to nothing
    assert feedback.training_rows().taken == taken


def test_the_last_answer_to_a_question_counts(feedback):
    give(feedback, range(20), "old")
    learn(feedback, "job1")
    give(feedback, range(20), "newer")
    give(feedback, range(20), "newest")
    rows = feedback.training_rows()
    assert not rows.earlier  # all of them are answered again
    assert len(rows.taken) == 40
    assert set(words(feedback, rows.new)) == {"newest"}
    assert set(words(feedback, rows.held)) == {"newest", "old"}  # established ones judge until the round has passed
    learn(feedback, "job2")
    assert set(words(feedback, feedback.training_rows().held)) == {"newest"}


# ---- room ------------------------------------------------------------------------------------------------------------


def test_waiting_feedback_has_a_limit(tmp_path):
    feedback = opened(tmp_path, feedback_rows=40)
    give(feedback, range(20))
    with pytest.raises(TooMuchError, match=r"20 rows of feedback .* wait to be learned, at most 20 .*learn them first"):
        give(feedback, range(20, 21))
    feedback.add(messages=ASKED, answer="on", rating="down")  # nothing of it waits
    learn(feedback, "job1")
    give(feedback, range(20, 40))
    with pytest.raises(TooMuchError):
        give(feedback, range(40, 41))


def test_what_was_learned_longest_ago_leaves_first(tmp_path):
    feedback = opened(tmp_path, feedback_rows=100)
    give(feedback, range(40))
    feedback.add(messages=ASKED, answer="on", rating="down")
    learn(feedback, "job1")
    first = feedback.training_rows()
    learned = questions(feedback, first.earlier)
    judges = questions(feedback, first.established)
    give(feedback, range(40, 80))
    learn(feedback, "job2")
    give(feedback, range(80, 110))
    kept = feedback.list(limit=1000)
    assert 98 <= len(kept) <= 100
    assert all(note.learns for note in kept)  # the thumb down went before any row
    rows = feedback.training_rows()
    assert judges <= questions(feedback, rows.established)  # judges stay
    assert questions(feedback, rows.new) | questions(feedback, rows.fresh) == set(range(80, 110))
    gone = learned - questions(feedback, rows.earlier)
    assert gone == set(sorted(learned)[: len(gone)]) != set()
    removed = next(row for row in first.earlier if row not in rows.earlier)
    with pytest.raises(TooMuchError, match="was removed while a job began"):
        feedback.row(removed)


def test_bytes_have_a_limit_too(tmp_path):
    feedback = opened(tmp_path, feedback_size=1)
    large = "x" * 100_000
    for number in range(5):
        feedback.add(prompt=f"{number}", correction=large)
    with pytest.raises(TooMuchError, match=r"5 rows of feedback \(0.5 MiB\) wait"):
        feedback.add(prompt="5", correction=large)
    with pytest.raises(TooMuchError):
        opened(tmp_path, feedback_size=1).add(prompt="5", correction=large)
    for turn in range(10):
        learn(feedback, f"job{turn}")
        feedback.add(prompt=f"more {turn}", correction=large)
    assert 5 <= len(feedback.list()) <= 10


def test_many_judges_leave_room_but_none_of_the_next_job(tmp_path):
    """Where nothing else is left to remove, judges leave, yet of each round those that would be asked stay."""
    feedback = opened(tmp_path, feedback_rows=1000)
    for turn in range(3):
        with feedback.store.write() as db:  # as if all were held out
            db.executemany("INSERT INTO feedback (id, created_at, model, row, held, state, job, question, size) "
                           "VALUES (?, 0, '', ?, 1, 'used', ?, ?, 35)",
                           [(f"fb-{turn}-{i}", '{"prompt": "a", "completion": "b"}', f"job{turn}", f"{turn}-{i}")
                            for i in range((50, 600, 349)[turn])])
    give(feedback, range(2))
    found = feedback.store.read("SELECT job, count(*) AS n FROM feedback WHERE job IS NOT NULL GROUP BY job")
    left = {row["job"]: row["n"] for row in found}
    assert left["job0"] == 50
    assert left["job1"] >= 100
    assert left["job2"] >= 100
    assert MOST <= sum(left.values()) < 999


def test_a_damaged_row_is_left_out_and_told(tmp_path):
    feedback = opened(tmp_path)
    give(feedback, range(30))
    with feedback.store.write() as db:
        db.execute("UPDATE feedback SET row = '{', question = NULL WHERE rowid IN (3, 4)")
        db.execute("UPDATE feedback SET row = '[]' WHERE rowid = 5")
    feedback = opened(tmp_path)
    rows = feedback.training_rows()
    assert questions(feedback, rows.new) | questions(feedback, rows.held) == set(range(30)) - {2, 3, 4}
    assert len(feedback.list(limit=100)) == 27
    assert len(feedback.store.reasons()) == 3
    feedback.add(messages=[{"role": "user", "content": "question 2"}], answer="yes 2", rating="down")
