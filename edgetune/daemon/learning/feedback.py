"""What people say about answers: corrections, ratings and choices, as rows to learn and rows to judge by.

A row is `new` until a job has learned it and the gate has evaluated that job. Then it is `used`, and later jobs learn
it again. If the job did not pass, it is set `aside`: no later job learns it or is evaluated by it. Where nothing spoke
against its rows, it is new again, and is learned together with the rows that come next, by TRIES jobs at most. A later
word on the same answer takes back an earlier one, whose row is then `withdrawn`. Of several right answers to a question
the newest counts; when that one is deleted or taken back, none counts, and the earlier ones are `withdrawn` with it.
What the daemon's method cannot use (kinds.py) is `counted`, and is new for a daemon whose method can. One question in
five is held out for the gate (holdout.py), and a question stays on its side. How much is kept, limits.py says.

People can read, edit and delete what they gave. What is deleted leaves the disk, and the next job learns without it.
"""

from __future__ import annotations

import secrets
import sqlite3
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import Any

from ...errors import DataError, NotFoundError, TooMuchError, UsageError
from ..options import DaemonConfig
from ..state.database import Store, dump, now
from ..state.holdout import MOST, Holdout
from .items import HEADING, FeedbackItem, Heading, State, heading_of, item_of, remains
from .kinds import ANSWERS, HAS_ANSWER, RowKind, right_answer
from .limits import judges, make_room, spread
from .rows import Rating, Row, answer_of, check_rating, check_size, make_row, question_of, read_row, with_answer

REPLAY_MOST = 2000  # rows read for replay, the latest
WAITS = "row IS NOT NULL AND state = 'new' AND job IS NULL"
NO_SIDE = -1
LIVE = "('new', 'used', 'counted')"
TRIES = 3  # jobs that learn a row, none of which passed
COUNTED = "row IS NOT NULL AND state = 'counted'"


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
    """Rows of a job. new, earlier: to learn. established, fresh: to judge by, of earlier rounds and of this one. taken:
    all that this job takes, also where a later answer to the same question counts.
    """

    new: StoredRows
    earlier: StoredRows
    established: StoredRows
    fresh: StoredRows
    taken: StoredRows

    @property
    def held(self) -> StoredRows:
        """All rows to judge by, those of earlier rounds first."""
        return self.established + self.fresh

    @property
    def rounds(self) -> Sequence[str]:
        """Of the established rows, the job of each."""
        return [row.job or "" for row in self.established]


class Feedback:
    """Feedback in the store. kind: of the rows that the daemon's method learns from. For any number of threads."""

    def __init__(self, store: Store, holdout: Holdout, config: DaemonConfig, kind: RowKind = ANSWERS) -> None:
        self.store = store
        self.holdout = holdout
        self.config = config
        self.kind = kind
        self._add_missing_questions()
        self._take_what_is_usable()

    def add(self, *, messages: Sequence[Mapping[str, Any]] | None = None, prompt: str | None = None, answer: str = "",
            rating: Rating | None = None, correction: str | None = None, model: str = "",
            tools: Sequence[Mapping[str, Any]] | None = None, rejected: str | None = None) -> FeedbackItem:
        """Feedback for an answer to messages (and tools), or to a prompt. rejected: another answer, which is worse.

        Known is then a right answer (a correction; an answer with a thumb up; the better of two) and a wrong one (what
        was corrected, or has a thumb down; the worse of two), or one of them. A later word on an answer takes back what
        was said of it before. Raises UsageError for feedback that says nothing or contradicts itself, DataError for
        messages that are none, TooLargeError for more than LARGEST bytes, TooMuchError where no more is kept.
        """
        rating = check_rating(answer, rating, correction, rejected)
        right = answer if rating == "up" else None
        if correction is not None:
            right = correction
        row = make_row(messages, prompt, right or "", tools)
        check_size(messages, prompt, tools, answer, correction, model, *([rejected] if rejected else []))
        if right is not None and not right.strip():
            raise UsageError("the answer to learn is empty", "give it as the correction, or rate the answer 'down'")
        wrong = answer if rejected is None else rejected
        is_other = bool(wrong.strip()) and (right is None or wrong.strip() != right.strip())
        question = question_of(row)
        with self.store.write() as db:
            item = self._placed(db, FeedbackItem(_new_id("fb"), now(), rating, model, row, False, "counted", None,
                                                 question, wrong if is_other else None))
            _withdraw(db, item)
            self._insert(db, item)
        return item

    def _placed(self, db: sqlite3.Connection, item: FeedbackItem) -> FeedbackItem:
        """As a new piece: with its side, where it can be learned."""
        ((usable,),) = db.execute(f"SELECT {self.kind.usable} FROM (SELECT ? AS answer, ? AS rejected)",
                                  (item.answer, item.rejected))
        if not usable:
            return replace(item, state="counted", held=False)
        return replace(item, state="new", held=self.holdout.side(db, item.question))

    def _insert(self, db: sqlite3.Connection, item: FeedbackItem, rowid: int | None = None) -> None:
        """rowid: None takes the next one."""
        row = dump(item.row) if item.row else None
        size = len(row or "") + len(item.model.encode()) + len((item.rejected or "").encode())
        make_room(db, self.config, self.holdout, self.kind.judging, size, waits=item.learns)
        heading = item.heading
        held = NO_SIDE if item.state == "counted" else item.held
        db.execute("INSERT INTO feedback (rowid, id, created_at, rating, model, row, held, state, job, question, size, "
                   "asked, answer, rejected) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
                   (rowid, item.id, item.created_at, item.rating, item.model, row, held, item.state, item.job,
                    item.question, size, heading.asked, heading.answer, item.rejected))

    def get(self, id: str) -> FeedbackItem:
        """Raises NotFoundError, also for an item that is damaged."""
        return self.store.one("feedback", self.store.read("SELECT * FROM feedback WHERE id = ?", id), item_of,
                              _unknown(id))

    def edit(self, id: str, correction: str) -> FeedbackItem:
        """What should have been answered, in other words: the latest word on its question, which waits to be learned.

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
            item = self._placed(db, replace(old, row=row, rating=rating, created_at=now(), job=None,
                                            rejected=old.rejected if is_other else None))
            (last,) = db.execute("SELECT max(rowid) FROM feedback").fetchone()
            db.execute("DELETE FROM feedback WHERE id = ?", (id,))
            self._insert(db, item, last + 1)  # a job that begins now has read another rowid
        self.store.wipe()
        return item

    def delete(self, id: str) -> str:
        """Remove it for good; what is said of what remains, a sentence or "". Raises NotFoundError.

        A damaged one can be deleted too. Only the digest of its question is kept, so that it stays on its side.
        """
        with self.store.write() as db:
            found = db.execute("SELECT rowid, state, held, job FROM feedback WHERE id = ?", (id,)).fetchone()
            if found is None:
                raise _unknown(id)
            _withdraw_earlier(db, found["rowid"])
            db.execute("DELETE FROM feedback WHERE id = ?", (id,))
        self.store.forget("feedback", id)
        self.store.wipe()
        return remains(found["state"], found["held"], found["job"])

    def list(self, after: str | None = None, limit: int = 100) -> Sequence[FeedbackItem]:
        """The newest first, at most `limit` of them, those older than the item `after`. Raises NotFoundError."""
        return self.store.newest("feedback", item_of, self.store.before("feedback", after), limit)

    def headings(self, after: str | None = None, limit: int = 100) -> Sequence[Heading]:
        """The same without their rows, which are not read."""
        return self.store.newest("feedback", heading_of, self.store.before("feedback", after), limit, columns=HEADING)

    def counts(self) -> dict[str, int]:
        """Rows to learn that are new and used, rows that judge (held), rows set aside, and rows taken back."""
        found: dict[tuple[State, int], int] = {(row["state"], row["held"]): row["n"] for row in self.store.read(
            "SELECT state, held = 1 AS held, count(*) AS n FROM feedback GROUP BY 1, 2")}

        def both(state: State) -> int:
            return found.get((state, 0), 0) + found.get((state, 1), 0)

        return {"new": found.get(("new", 0), 0), "used": found.get(("used", 0), 0),
                "held": found.get(("new", 1), 0) + found.get(("used", 1), 0),
                "aside": both("aside"), "withdrawn": both("withdrawn")}

    # ---- learning -----------------------------------------------------------------------------------------------

    def training_rows(self) -> TrainingRows:
        """What a job that begins now learns and is judged by. Where a question was answered again, the last answer
        counts; a new one may contradict an earlier one that judges.

        MOST rows judge. This round's have half of the places, those of earlier rounds the other half, and either gets
        what the other does not need: no flood of new rows, and no large round, displaces what was established.
        """
        kind = self.kind
        new = self._stored("new", 0, kind.usable)
        held = self._stored("new", 1, kind.usable)
        said_again = {word_of(row) for row in new}
        earlier = [row for row in self._stored("used", 0, kind.usable) if word_of(row) not in said_again]
        before = self.store.read(judges(kind.judging))
        fresh = latest(self._stored("new", 1, kind.judging))
        places = max(MOST // 2, MOST - len(before))
        chosen = self.holdout.lowest([row.question for row in fresh], places)
        established = self._readable(sorted(spread(before, self.holdout, MOST - len(chosen))))
        return TrainingRows(latest(new), latest(earlier), established,
                            [row for row in fresh if row.question in chosen], new + held)

    def learned_rows(self) -> TrainingRows:
        """What a job learns that begins anew with all that was learned, as if it were new. It is judged by what judged
        that, and takes nothing: feedback that waits continues to wait.
        """
        kind = self.kind
        judging = self._readable(sorted(spread(self.store.read(judges(kind.judging)), self.holdout, MOST)))
        return TrainingRows(latest(self._stored("used", 0, kind.usable)), [], judging, [], [])

    def answered_rows(self) -> TrainingRows:
        """What people said is right, by whatever method the daemon learns from it: `new` to learn, and what judges. It
        takes nothing. Half of MOST rows judge at most, of earlier rounds and of what waits alike.
        """
        learned = self._stored("used", 0, HAS_ANSWER) + self._stored("new", 0, HAS_ANSWER)
        before = self.store.read(judges(HAS_ANSWER))
        fresh = latest(self._stored("new", 1, HAS_ANSWER))
        chosen = self.holdout.lowest([row.question for row in fresh], max(MOST // 4, MOST // 2 - len(before)))
        fresh = [row for row in fresh if row.question in chosen]
        established = self._readable(sorted(spread(before, self.holdout, MOST // 2 - len(fresh))))
        return TrainingRows(latest(learned), [], established, fresh, [])

    def row(self, stored: StoredRow) -> Row:
        """Its content. Raises TooMuchError where it was removed meanwhile."""
        return right_answer(self.item(stored))

    def item(self, stored: StoredRow) -> FeedbackItem:
        """The piece that it is of. Raises TooMuchError where it was removed meanwhile."""
        items = self.store.objects("feedback", self._columns(stored.rowid), item_of)
        if not items or items[0].row is None or items[0].id != stored.id:
            raise TooMuchError(f"the feedback {stored.id} was removed while a job began", "ask again")
        return items[0]

    def _stored(self, state: State, held: int, condition: str) -> StoredRows:
        """The latest REPLAY_MOST, the oldest of them first."""
        found = self.store.read(f"SELECT rowid FROM feedback WHERE state = ? AND held = ? AND {condition} "
                                "ORDER BY rowid DESC LIMIT ?", state, held, REPLAY_MOST)
        return self._readable(row["rowid"] for row in reversed(found))

    def _readable(self, rowids: Iterable[int]) -> StoredRows:
        """Those that are not damaged. One is in memory at a time."""
        found = []
        for rowid in rowids:
            for item in self.store.objects("feedback", self._columns(rowid), item_of):
                if item.row is not None:
                    found.append(StoredRow(rowid, item.id, item.question, item.job, "messages" in item.row,
                                           bool(item.answer)))
        return found

    def _columns(self, rowid: int) -> Iterable[sqlite3.Row]:
        return self.store.read("SELECT * FROM feedback WHERE rowid = ?", rowid)

    def waiting_ids(self) -> Sequence[str]:
        """Of items with a row that waits for a job, the oldest first."""
        return [row["id"] for row in self.store.read(f"SELECT id FROM feedback WHERE {self._waits} ORDER BY rowid")]

    def learned_ids(self) -> Sequence[str]:
        """Of items that a job has learned, the oldest first."""
        return [row["id"] for row in self.store.read(
            f"SELECT id FROM feedback WHERE state = 'used' AND held = 0 AND {self.kind.usable} ORDER BY rowid")]

    def waiting(self) -> int:
        """How many rows wait for a job, those that will judge included."""
        return int(self.store.read(f"SELECT count(*) FROM feedback WHERE {self._waits}")[0][0])

    def unusable(self) -> int:
        """How many pieces wait for another method."""
        return int(self.store.read(f"SELECT count(*) FROM feedback WHERE {COUNTED}")[0][0])

    @property
    def _waits(self) -> str:
        return f"{WAITS} AND {self.kind.usable}"

    def set_aside(self, id: str) -> None:
        """Learn nothing from this item."""
        with self.store.write() as db:
            db.execute("UPDATE feedback SET state = 'aside' WHERE id = ?", (id,))

    def assign(self, rows: Iterable[StoredRow], job: str) -> None:
        """These rows belong to a job; not those that were edited or deleted since it read them."""
        with self.store.write() as db:
            db.executemany("UPDATE feedback SET job = ? WHERE rowid = ? AND id = ?",
                           [(job, row.rowid, row.id) for row in rows])

    def settle(self, job: str, state: State) -> None:
        """The job is over: its new rows were used, or are set aside; new: they wait for another job."""
        with self.store.write() as db:
            db.execute("UPDATE feedback SET state = ?, job = CASE ? WHEN 'new' THEN NULL ELSE job END "
                       "WHERE job = ? AND state = 'new'", (state, state, job))

    def learn_again(self, job: str) -> None:
        """The job did not pass though nothing speaks against its rows: they wait for another one. Those for which it
        was the last of TRIES are set aside, for with wrong rows among them no later job might ever pass.
        """
        with self.store.write() as db:
            db.execute("UPDATE feedback SET tries = tries + 1 WHERE job = ? AND state = 'new'", (job,))
            db.execute("UPDATE feedback SET state = 'aside' WHERE job = ? AND state = 'new' AND tries >= ?",
                       (job, TRIES))
            db.execute("UPDATE feedback SET job = NULL WHERE job = ? AND state = 'new'", (job,))

    def unsettled(self) -> Sequence[str]:
        """Jobs whose rows wait to be settled."""
        return [row["job"] for row in self.store.read(
            "SELECT DISTINCT job FROM feedback WHERE state = 'new' AND job IS NOT NULL")]

    def _take_what_is_usable(self) -> None:
        """Another method may have learned before: what it could not use is new if this one can, and the other way."""
        with self.store.write() as db:
            db.execute(f"UPDATE feedback SET state = 'counted' WHERE {WAITS} AND NOT {self.kind.usable}")
            found = db.execute(f"SELECT rowid, question FROM feedback WHERE {COUNTED} AND {self.kind.usable} "
                               "ORDER BY rowid").fetchall()
            for each in found:
                held = self.holdout.side(db, each["question"])
                db.execute("UPDATE feedback SET state = 'new', held = ? WHERE rowid = ?", (held, each["rowid"]))

    def _add_missing_questions(self) -> None:
        """An earlier version stored none. A row that cannot be read gets an empty one."""
        wanting = "SELECT rowid, row FROM feedback WHERE question IS NULL AND row IS NOT NULL LIMIT 100"
        while found := self.store.read(wanting):
            with self.store.write() as db:
                for each in found:
                    try:
                        question = question_of(read_row(each["row"]))
                    except (ValueError, DataError, RecursionError):
                        question = ""
                    db.execute("UPDATE feedback SET question = ? WHERE rowid = ?", (question, each["rowid"]))


def word_of(row: StoredRow) -> tuple[str, bool]:
    """What a later row says again: which answer to a question is right, or only that one is wrong."""
    return row.question, row.has_answer


def latest(rows: Iterable[StoredRow]) -> StoredRows:
    """The last word of each kind on each question, in order of time."""
    found: dict[tuple[str, bool], StoredRow] = {}
    for row in rows:
        found.pop(word_of(row), None)
        found[word_of(row)] = row
    return [*found.values()]


def _new_id(kind: str) -> str:
    return f"{kind}-{secrets.token_hex(12)}"


def _unknown(id: str) -> NotFoundError:
    return NotFoundError(f"there is no feedback {id!r:.80}", "list it to see what exists")


def _withdraw(db: sqlite3.Connection, new: FeedbackItem) -> None:
    """Nothing more is learned from, or judged by, earlier words that its wrong answer is right, and thumbs down on
    either answer: it says them again, or takes them back.
    """
    wrong = (new.rejected or "").strip()
    said = db.execute("SELECT rowid FROM feedback WHERE question = ? AND row IS NOT NULL "
                      f"AND state IN {LIVE}", (new.question,))
    for (rowid,) in said.fetchall():
        text, rejected = db.execute("SELECT row, rejected FROM feedback WHERE rowid = ?", (rowid,)).fetchone()
        with suppress(ValueError, DataError, RecursionError):  # a damaged row says nothing
            right = answer_of(read_row(text)).strip()
            is_thumb_down = not right and (rejected or "").strip() in (wrong, new.answer.strip())
            if is_thumb_down or (right and right == wrong):
                _withdraw_earlier(db, rowid)
                db.execute("UPDATE feedback SET state = 'withdrawn' WHERE rowid = ?", (rowid,))


def _withdraw_earlier(db: sqlite3.Connection, rowid: int) -> None:
    """Nothing more is learned from what this row replaced: right answers that were given earlier to its question. Call
    it where the row leaves, which would bring the last of them back.
    """
    db.execute(f"UPDATE feedback SET state = 'withdrawn' WHERE state IN {LIVE} AND {HAS_ANSWER} AND rowid < ? AND "
               f"question = (SELECT question FROM feedback WHERE rowid = ? AND {HAS_ANSWER})", (rowid, rowid))
