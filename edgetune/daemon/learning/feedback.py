"""Feedback on answers: corrections, ratings and choices, as rows to learn and rows that are held out.

A row is `new` until a job has learned it and the gate has evaluated that job. Then it is `used`, and later jobs learn
it again. If the job did not pass, it is set `aside`: no later job learns it or is evaluated by it. Where nothing spoke
against its rows, they are new again, and are learned together with the next ones, by TRIES jobs at most. Newer feedback
on the same answer replaces older feedback, whose row is then `withdrawn`. Of several right answers to a question the
newest counts; when that one is deleted or replaced, none counts, and the earlier ones are `withdrawn` with it. Feedback
that the daemon's method cannot use (row_kinds.py) is `counted`, and is new for a daemon whose method can use it. One
question in five is held out for the gate (holdout.py), and a question stays on its side. limits.py says what leaves.

People can read, edit and delete their feedback. Deleted feedback leaves the disk, and the next job learns without it.
"""

from __future__ import annotations

import secrets
import sqlite3
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import islice
from typing import Any

from ...data.question import question_digest
from ...errors import DataError, NotFoundError, TooMuchError, UsageError
from ..options import DaemonConfig
from ..state.database import Store, dump, now
from ..state.holdout import MOST, Holdout
from .items import (
    HEADING,
    FeedbackItem,
    Heading,
    Rating,
    Row,
    State,
    check_rating,
    check_size,
    expiry,
    heading_of,
    item_of,
    make_row,
    read_row,
    remains,
    with_answer,
)
from .limits import held_out, make_room, spread, withdraw, withdraw_earlier
from .row_kinds import ANSWERS, HAS_ANSWER, RowKind, right_answer

REPLAY_MOST = 2000  # rows of each state and side that a job reads, the latest
TOGETHER = 16  # rows that are read at once: of 256 KiB at most
WAITS = "row IS NOT NULL AND state = 'new' AND job IS NULL"
NO_SIDE = -1
TRIES = 5  # jobs that learn a row, none of which passed
COUNTED = "row IS NOT NULL AND state = 'counted' AND expires_at IS NULL"


@dataclass(frozen=True)
class StoredRow:
    """A row in the database, without its content: all rows of a job together may not fit in memory.

    id, question: of its item. job: the last one that used it. is_chat: whether it is a row of messages.
    has_answer: whether a right answer is known.
    """

    rowid: int
    id: str
    question: str
    job: str | None
    is_chat: bool
    has_answer: bool = True


StoredRows = list[StoredRow]


@dataclass(frozen=True)
class TrainingRows:
    """Rows of a job. new, earlier: to learn. established, fresh: held out, from earlier jobs and from this one. taken:
    all that this job takes, even if a newer answer to the same question counts.
    """

    new: StoredRows
    earlier: StoredRows
    established: StoredRows
    fresh: StoredRows
    taken: StoredRows

    @property
    def held(self) -> StoredRows:
        """Returns all held-out rows, those of earlier jobs first."""
        return self.established + self.fresh

    @property
    def rounds(self) -> Sequence[str]:
        return [row.job or "" for row in self.established]


class Feedback:
    """Feedback in the store, for any number of threads. kind: of the rows that the daemon's method learns from."""

    def __init__(self, store: Store, holdout: Holdout, config: DaemonConfig, kind: RowKind = ANSWERS) -> None:
        self.store = store
        self.holdout = holdout
        self.config = config
        self.kind = kind
        self.on_added: list[Callable[[], None]] = []  # called after each `add`
        # called with the question of what is deleted, within its transaction
        self.on_deleted: list[Callable[[sqlite3.Connection, str], None]] = []
        self._add_missing_questions()
        self._take_what_is_usable()

    def add(self, *, messages: Sequence[Mapping[str, Any]] | None = None, prompt: str | None = None, answer: str = "",
            rating: Rating | None = None, correction: str | None = None, model: str = "",
            tools: Sequence[Mapping[str, Any]] | None = None, rejected: str | None = None,
            expires_in: int | None = None) -> FeedbackItem:
        """Adds feedback for an answer to messages (and tools), or to a prompt. rejected: a worse answer. expires_in:
        seconds for which it is recalled; such feedback is never learned.

        It gives a right answer, a wrong one, or both. Right are a correction, an answer with a thumb up, and the better
        of two. Wrong are an answer that was corrected or has a thumb down, and the worse of two. Newer feedback on an
        answer replaces older feedback. Raises UsageError for feedback that says nothing or contradicts itself,
        DataError for malformed messages, TooLargeError for more than LARGEST bytes, TooMuchError where no more is kept.
        """
        rating = check_rating(answer, rating, correction, rejected)
        right = answer if rating == "up" else None
        if correction is not None:
            right = correction
        row = make_row(messages, prompt, right or "", tools)
        check_size(messages, prompt, tools, answer, correction, model, *([rejected] if rejected else []))
        if expires_in is not None and right is None:
            raise UsageError("expires_in is given, and no right answer", "give it with a correction, or leave it out")
        if right is not None and not right.strip():
            raise UsageError("the answer to learn is empty", "give it as the correction, or rate the answer 'down'")
        wrong = answer if rejected is None else rejected
        is_other = bool(wrong.strip()) and (right is None or wrong.strip() != right.strip())
        question = question_digest(row, by_shape=True)
        with self.store.write() as db:
            item = self._placed(db, FeedbackItem(f"fb-{secrets.token_hex(12)}", now(), rating, model, row, False,
                                                 "counted", None, question, wrong if is_other else None,
                                                 expiry(expires_in)))
            withdraw(db, item)
            self._insert(db, item)
        for call in self.on_added:
            call()
        return item

    def _placed(self, db: sqlite3.Connection, item: FeedbackItem) -> FeedbackItem:
        """Returns a new item with its side, where it can be learned."""
        ((usable,),) = db.execute(f"SELECT {self.kind.usable} FROM (SELECT ? AS answer, ? AS rejected)",
                                  (item.answer, item.rejected))
        if not usable or item.expires_at is not None:
            return replace(item, state="counted", held=False)
        return replace(item, state="new", held=self.holdout.side(db, item.question))

    def _insert(self, db: sqlite3.Connection, item: FeedbackItem, rowid: int | None = None) -> None:
        """Inserts an item. rowid: None takes the next one."""
        row = dump(item.row) if item.row else None
        size = len(row or "") + len(item.model.encode()) + len((item.rejected or "").encode())
        make_room(db, self.config, self.holdout, self.kind.evaluable, size, waits=item.learns)
        heading = item.heading
        held = NO_SIDE if item.state == "counted" else item.held
        db.execute("INSERT INTO feedback (rowid, id, created_at, rating, model, row, held, state, job, question, size, "
                   "asked, answer, rejected, expires_at) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
                   (rowid, item.id, item.created_at, item.rating, item.model, row, held, item.state, item.job,
                    item.question, size, heading.asked, heading.answer, item.rejected, item.expires_at))

    def get(self, id: str) -> FeedbackItem:
        """Returns an item. Raises NotFoundError, also for an item that is damaged."""
        return self.store.one("feedback", self.store.read("SELECT * FROM feedback WHERE id = ?", id), item_of,
                              _unknown(id))

    def edit(self, id: str, correction: str) -> FeedbackItem:
        """Replaces the correction of an item: it is the newest feedback on its question, and waits to be learned. If it
        expires, its time begins again.

        Raises NotFoundError, and UsageError for an empty correction, or feedback whose question was not kept;
        TooLargeError and TooMuchError as `add`.
        """
        if not correction.strip():
            raise UsageError("the correction is empty", "write what should have been answered, or delete the feedback")
        with self.store.write() as db:
            old = self.get(id)
            if old.row is None:
                raise UsageError(f"the feedback {id} is a thumb down of an earlier version, which kept no question",
                                 "send a correction with its messages, or prompt")
            row = with_answer(old.row, correction)
            check_size(row, old.model, old.rejected)
            rating = None if old.rating == "up" else old.rating
            is_other = old.rejected is not None and old.rejected.strip() != correction.strip()
            expires_at = None if old.expires_at is None else now() + old.expires_at - old.created_at
            item = self._placed(db, replace(old, row=row, rating=rating, created_at=now(), job=None,
                                            rejected=old.rejected if is_other else None, expires_at=expires_at))
            (last,) = db.execute("SELECT max(rowid) FROM feedback").fetchone()
            db.execute("DELETE FROM feedback WHERE id = ?", (id,))
            self._insert(db, item, last + 1)  # a job that begins now has read another rowid
        self.store.wipe()
        return item

    def delete(self, id: str) -> str:
        """Removes an item permanently; returns a sentence on remains of it, or "". Raises NotFoundError.

        A damaged one can be deleted too. Only the digest of its question is kept, so that it stays on its side.
        """
        with self.store.write() as db:
            found = db.execute("SELECT rowid, state, held, job, question FROM feedback WHERE id = ?", (id,)).fetchone()
            if found is None:
                raise _unknown(id)
            withdraw_earlier(db, found["rowid"])
            db.execute("DELETE FROM feedback WHERE id = ?", (id,))
            for call in self.on_deleted:
                call(db, found["question"] or "")
        self.store.forget("feedback", id)
        self.store.wipe()
        return remains(found["state"], found["held"], found["job"])

    def list(self, after: str | None = None, limit: int = 100) -> Sequence[FeedbackItem]:
        """Returns at most `limit` items older than the item `after`, the newest first. Raises NotFoundError."""
        return self.store.newest("feedback", item_of, self.store.before("feedback", after), limit)

    def headings(self, after: str | None = None, limit: int = 100) -> Sequence[Heading]:
        """Returns the same without their rows, which are not read."""
        return self.store.newest("feedback", heading_of, self.store.before("feedback", after), limit, columns=HEADING)

    def counts(self) -> dict[str, int]:
        """Counts rows to learn that are new and used, held-out rows, rows set aside, and rows withdrawn."""
        found: dict[tuple[State, int], int] = {(row["state"], row["held"]): row["n"] for row in self.store.read(
            "SELECT state, held = 1 AS held, count(*) AS n FROM feedback GROUP BY 1, 2")}

        def both(state: State) -> int:
            return found.get((state, 0), 0) + found.get((state, 1), 0)

        return {"new": found.get(("new", 0), 0), "used": found.get(("used", 0), 0),
                "held": found.get(("new", 1), 0) + found.get(("used", 1), 0),
                "aside": both("aside"), "withdrawn": both("withdrawn")}

    # ---- learning -----------------------------------------------------------------------------------------------

    def training_rows(self, most: int = MOST) -> TrainingRows:
        """Returns the rows that a job learns, or holds out, if it begins now. Where a question was answered again, the
        newest answer counts; it may contradict an earlier one that is held out.

        At most `most` rows are held out. This job's have half of the places, those of earlier jobs the other half, and
        either gets places that the other does not need. So neither many new rows nor a large job displaces established
        ones.
        """
        kind = self.kind
        new = self._stored("new", 0, kind.usable)
        held = self._stored("new", 1, kind.usable)
        said_again = {word_of(row) for row in new}
        earlier = [row for row in self._stored("used", 0, kind.usable) if word_of(row) not in said_again]
        before = self.store.read(held_out(kind.evaluable))
        fresh = latest(self._stored("new", 1, kind.evaluable))
        places = max(most // 2, most - len(before))
        chosen = self.holdout.lowest([row.question for row in fresh], places)
        established = self._readable(sorted(spread(before, self.holdout, most - len(chosen))))
        return TrainingRows(latest(new), latest(earlier), established,
                            [row for row in fresh if row.question in chosen], new + held)

    def learned_rows(self, most: int = MOST) -> TrainingRows:
        """Returns all learned rows as if they were new, for a job that trains on all feedback again. Its held-out rows
        are those of earlier jobs. It takes nothing: feedback that waits continues to wait.
        """
        kind = self.kind
        held = self._readable(sorted(spread(self.store.read(held_out(kind.evaluable)), self.holdout, most)))
        return TrainingRows(latest(self._stored("used", 0, kind.usable)), [], held, [], [])

    def answered_rows(self) -> TrainingRows:
        """Returns right answers, by whatever method the daemon learns from them: `new` to learn, and held-out rows. It
        takes nothing. At most half of MOST rows are held out, with equal places for earlier and for waiting ones.
        """
        learned = self._stored("used", 0, HAS_ANSWER) + self._stored("new", 0, HAS_ANSWER)
        before = self.store.read(held_out(HAS_ANSWER))
        fresh = latest(self._stored("new", 1, HAS_ANSWER))
        chosen = self.holdout.lowest([row.question for row in fresh], max(MOST // 4, MOST // 2 - len(before)))
        fresh = [row for row in fresh if row.question in chosen]
        established = self._readable(sorted(spread(before, self.holdout, MOST // 2 - len(fresh))))
        return TrainingRows(latest(learned), [], established, fresh, [])

    def row(self, stored: StoredRow) -> Row:
        """Returns the content of a row. Raises TooMuchError where it was removed meanwhile."""
        return right_answer(self.item(stored))

    def item(self, stored: StoredRow) -> FeedbackItem:
        """Returns the item of a row. Raises TooMuchError where it was removed meanwhile."""
        rows = self.store.read("SELECT * FROM feedback WHERE rowid = ?", stored.rowid)
        items = self.store.objects("feedback", rows, item_of)
        if not items or items[0].row is None or items[0].id != stored.id:
            raise TooMuchError(f"the feedback {stored.id} was removed while a job began", "ask again")
        return items[0]

    def _stored(self, state: State, held: int, condition: str) -> StoredRows:
        """Returns the latest REPLAY_MOST rows, the oldest of them first."""
        found = self.store.read(f"SELECT rowid FROM feedback WHERE state = ? AND held = ? AND {condition} "
                                "ORDER BY rowid DESC LIMIT ?", state, held, REPLAY_MOST)
        return self._readable(row["rowid"] for row in reversed(found))

    def _readable(self, rowids: Iterable[int]) -> StoredRows:
        """Returns the rows that are not damaged, the oldest first. Few are in memory at a time."""
        found = []
        for rows in self._together("rowid", rowids):
            places = {row["id"]: row["place"] for row in rows}
            found += [StoredRow(places[item.id], item.id, item.question, item.job, "messages" in item.row,
                                bool(item.answer))
                      for item in self.store.objects("feedback", rows, item_of) if item.row is not None]
        return found

    def items(self, ids: Iterable[str]) -> Iterator[FeedbackItem]:
        """Yields items that are there, and not damaged. Few are in memory at a time."""
        for rows in self._together("id", ids):
            yield from self.store.objects("feedback", rows, item_of)

    def answers(self) -> Iterator[Row]:
        """Yields right answers as rows, the oldest first, with `rejected`: the wrong answer, where one is known."""
        found = self.store.read(f"SELECT rowid FROM feedback WHERE state IN ('new', 'used') AND {HAS_ANSWER} "
                                "ORDER BY rowid")
        for rows in self._together("rowid", (row["rowid"] for row in found)):
            for item in self.store.objects("feedback", rows, item_of):
                yield right_answer(item) | ({} if item.rejected is None else {"rejected": item.rejected})

    def _together(self, column: str, values: Iterable[Any]) -> Iterator[Sequence[sqlite3.Row]]:
        """Yields rows with these values of a column, TOGETHER at most at once: one statement each is slow for many."""
        left = iter(values)
        while part := [*islice(left, TOGETHER)]:
            marks = ", ".join("?" * len(part))
            yield self.store.read(f"SELECT *, rowid AS place FROM feedback WHERE {column} IN ({marks}) ORDER BY rowid",
                                  *part)

    def waiting(self) -> int:
        """Counts rows that wait for a job, including those that will be held out."""
        return int(self.store.read(f"SELECT count(*) FROM feedback WHERE {WAITS} AND {self.kind.usable}")[0][0])

    def questions(self) -> set[str]:
        """Returns the digests of the questions with feedback that is, or will be, learned or held out."""
        return {row["question"] for row in self.store.read(
            "SELECT DISTINCT question FROM feedback WHERE state IN ('new', 'used')")}

    def unusable(self) -> int:
        """Counts items that wait for another method."""
        return int(self.store.read(f"SELECT count(*) FROM feedback WHERE {COUNTED}")[0][0])

    def set_aside(self, id: str) -> None:
        with self.store.write() as db:
            db.execute("UPDATE feedback SET state = 'aside' WHERE id = ?", (id,))

    def assign(self, rows: Iterable[StoredRow], job: str) -> None:
        """Assigns these rows to a job, as `assign` does, in one transaction."""
        with self.store.write() as db:
            assign(db, rows, job)

    def settle(self, job: str, state: State) -> None:
        """Settles the new rows of a job that has ended: used, set aside, or new, to wait for another job."""
        with self.store.write() as db:
            db.execute("UPDATE feedback SET state = ?, job = CASE ? WHEN 'new' THEN NULL ELSE job END "
                       "WHERE job = ? AND state = 'new'", (state, state, job))

    def learn_again(self, job: str) -> None:
        """Lets rows wait for another job where theirs did not pass though nothing speaks against them. Rows for which
        it was the last of TRIES are set aside: wrong rows among them might keep every later job from passing.
        """
        with self.store.write() as db:
            db.execute("UPDATE feedback SET tries = tries + 1 WHERE job = ? AND state = 'new'", (job,))
            db.execute("UPDATE feedback SET state = 'aside' WHERE job = ? AND state = 'new' AND tries >= ?",
                       (job, TRIES))
            db.execute("UPDATE feedback SET job = NULL WHERE job = ? AND state = 'new'", (job,))

    def unsettled(self) -> Sequence[str]:
        """Returns jobs whose rows wait to be settled."""
        return [row["job"] for row in self.store.read(
            "SELECT DISTINCT job FROM feedback WHERE state = 'new' AND job IS NOT NULL")]

    def _take_what_is_usable(self) -> None:
        """Updates states after a change of the method: usable rows become new, and other ones that wait `counted`."""
        with self.store.write() as db:
            db.execute(f"UPDATE feedback SET state = 'counted' WHERE {WAITS} AND NOT {self.kind.usable}")
            found = db.execute(f"SELECT rowid, question FROM feedback WHERE {COUNTED} AND {self.kind.usable} "
                               "ORDER BY rowid").fetchall()
            for each in found:
                held = self.holdout.side(db, each["question"])
                db.execute("UPDATE feedback SET state = 'new', held = ? WHERE rowid = ?", (held, each["rowid"]))

    def _add_missing_questions(self) -> None:
        """Adds digests of questions that an earlier version did not store; "" for a row that cannot be read."""
        wanting = "SELECT rowid, row FROM feedback WHERE question IS NULL AND row IS NOT NULL LIMIT 100"
        while found := self.store.read(wanting):
            with self.store.write() as db:
                for each in found:
                    try:
                        question = question_digest(read_row(each["row"]), by_shape=True)
                    except (ValueError, DataError, RecursionError):
                        question = ""
                    db.execute("UPDATE feedback SET question = ? WHERE rowid = ?", (question, each["rowid"]))


def assign(db: sqlite3.Connection, rows: Iterable[StoredRow], job: str) -> None:
    """Assigns these rows to a job, except those that were edited or deleted since it read them."""
    db.executemany("UPDATE feedback SET job = ? WHERE rowid = ? AND id = ?", [(job, row.rowid, row.id) for row in rows])


def word_of(row: StoredRow) -> tuple[str, bool]:
    """Returns the key by which newer rows replace older ones: the question, and whether a right answer is known."""
    return row.question, row.has_answer


def latest(rows: Iterable[StoredRow]) -> StoredRows:
    """Returns the newest row of each kind on each question, in order of time."""
    found: dict[tuple[str, bool], StoredRow] = {}
    for row in rows:
        found.pop(word_of(row), None)
        found[word_of(row)] = row
    return [*found.values()]


def _unknown(id: str) -> NotFoundError:
    return NotFoundError(f"there is no feedback {id!r:.80}", "list it to see what exists")
