"""What people say about answers: corrections and ratings, as rows to learn and rows to judge by.

A row is `new` until a job has learned it and the gate has judged that job. Then it is `used`, and later jobs learn it
again; if the job did not pass, it is set `aside`: nothing is learned from it or judged by it any more. A later word on
the same answer takes back an earlier one, whose row is then `withdrawn`. One question in five is held out for the gate
(holdout.py), and a question stays on its side.

At most `feedback_rows` items of `feedback_size` MiB together are kept, half of them waiting to be learned. If a new one
needs room, items of no use are removed first, then what was learned longest ago, then judges of earlier rounds except
those that the next job would ask.
"""

from __future__ import annotations

import secrets
import sqlite3
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

from ...errors import DataError, NotFoundError, TooMuchError, UsageError
from ..options import DaemonConfig
from ..state.database import Store, dump, now
from ..state.files import MIB
from ..state.holdout import MOST, Holdout
from .items import HEADING, FeedbackItem, Heading, Rating, State, heading_of, item_of
from .rows import Row, answer_of, check_rating, check_size, make_row, question_of, read_row

REPLAY_MOST = 2000  # rows read for replay, the latest
SPARE = 0.01  # share of the limits that is freed at once, so that not every new item has to search for room
JUDGES = """SELECT max(rowid) AS rowid, question, job FROM feedback
            WHERE state = 'used' AND held = 1 GROUP BY question ORDER BY 1"""  # the last answer to each question
WAITS = "row IS NOT NULL AND state = 'new' AND job IS NULL"


@dataclass(frozen=True)
class StoredRow:
    """A row in the database, without its content: all rows of a job together may not fit in memory.

    id, question: of its item. is_chat: whether it is a row of messages.
    """

    rowid: int
    id: str
    question: str
    is_chat: bool


StoredRows = list[StoredRow]


@dataclass(frozen=True)
class TrainingRows:
    """Rows of a job. new, earlier: to learn. established, fresh: to judge by, of earlier rounds and of this one. ids:
    of the items that this job takes.
    """

    new: StoredRows
    earlier: StoredRows
    established: StoredRows
    fresh: StoredRows
    ids: list[str]

    @property
    def held(self) -> StoredRows:
        """All rows to judge by, those of earlier rounds first."""
        return self.established + self.fresh


class Feedback:
    """Feedback in the store. For any number of threads."""

    def __init__(self, store: Store, holdout: Holdout, config: DaemonConfig) -> None:
        self.store = store
        self.holdout = holdout
        self.config = config
        self._add_missing_questions()

    def add(self, *, messages: Sequence[Mapping[str, Any]] | None = None, prompt: str | None = None, answer: str = "",
            rating: Rating | None = None, correction: str | None = None, model: str = "",
            tools: Sequence[Mapping[str, Any]] | None = None) -> FeedbackItem:
        """Feedback for an answer to messages (and tools), or to a prompt.

        A correction is learned; a thumb up without one confirms the answer, which is learned; a thumb down alone is
        counted. A thumb down, or a correction by another text, takes back what was said for that answer before.
        Raises UsageError for feedback that says nothing or contradicts itself, DataError for messages that are none,
        TooLargeError for more than LARGEST bytes, TooMuchError where no more is kept.
        """
        check_rating(answer, rating, correction)
        right = answer if rating == "up" else None
        if correction is not None:
            right = correction
        row = make_row(messages, prompt, right or "", tools)
        check_size(messages, prompt, tools, answer, correction, model)
        if right is not None and not right.strip():
            raise UsageError("the answer to learn is empty", "give it as the correction, or rate the answer 'down'")
        question = question_of(row)
        with self.store.write() as db:
            if rating == "down" or (correction is not None and correction.strip() != answer.strip()):
                _withdraw(db, question, answer)
            learns = right is not None
            item = FeedbackItem(f"fb-{secrets.token_hex(12)}", now(), rating, model, row if learns else None,
                                learns and self._is_held(db, question), "new" if learns else "counted", None, question)
            self._insert(db, item)
        return item

    def _is_held(self, db: sqlite3.Connection, question: str) -> bool:
        """A question that was answered before stays on its side, also where another rule decided then."""
        known = db.execute("SELECT held FROM feedback WHERE question = ? AND row IS NOT NULL LIMIT 1", (question,))
        found = known.fetchone()
        return bool(found[0]) if found else self.holdout.holds(question)

    def _insert(self, db: sqlite3.Connection, item: FeedbackItem) -> None:
        row = dump(item.row) if item.row else None
        size = len(row or "") + len(item.model.encode())
        self._make_room(db, size, waits=item.row is not None)
        db.execute("INSERT INTO feedback (id, created_at, rating, model, row, held, state, job, question, size) "
                   "VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
                   (item.id, item.created_at, item.rating, item.model, row, item.held, item.state, item.job,
                    item.question, size))

    def get(self, id: str) -> FeedbackItem:
        """Raises NotFoundError, also for an item that is damaged."""
        return self.store.one("feedback", self.store.read("SELECT * FROM feedback WHERE id = ?", id), item_of,
                              NotFoundError(f"there is no feedback {id!r:.80}", "list it to see what exists"))

    def list(self, after: str | None = None, limit: int = 100) -> Sequence[FeedbackItem]:
        """The newest first, at most `limit` of them, those older than the item `after`. Raises NotFoundError."""
        return self.store.newest("feedback", item_of, self.store.before("feedback", after), limit)

    def headings(self, after: str | None = None, limit: int = 100) -> Sequence[Heading]:
        """The same without their rows, which are not read."""
        return self.store.newest("feedback", heading_of, self.store.before("feedback", after), limit, columns=HEADING)

    def counts(self) -> dict[str, int]:
        """Rows to learn that are new and used, rows that judge (held), rows set aside, and rows taken back."""
        found: dict[tuple[State, int], int] = {(row["state"], row["held"]): row["n"] for row in self.store.read(
            "SELECT state, held, count(*) AS n FROM feedback GROUP BY state, held")}

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
        new = self._stored("new", 0)
        held = self._stored("new", 1)
        answered_again = {row.question for row in new}
        earlier = [row for row in self._stored("used", 0) if row.question not in answered_again]
        judges = self.store.read(JUDGES)
        fresh = latest(held)
        places = max(MOST // 2, MOST - len(judges))
        chosen = self.holdout.lowest([row.question for row in fresh], places)
        established = self._readable(sorted(self._spread(judges, MOST - len(chosen))))
        return TrainingRows(latest(new), latest(earlier), established,
                            [row for row in fresh if row.question in chosen], [row.id for row in new + held])

    def row(self, stored: StoredRow) -> Row:
        """Its content. Raises TooMuchError where other feedback took its place meanwhile."""
        items = self.store.objects("feedback", self._columns(stored.rowid), item_of)
        if not items or items[0].row is None or items[0].id != stored.id:
            raise TooMuchError(f"the feedback {stored.id} was removed to make room for newer while a job began",
                               "ask again")
        return items[0].row

    def _stored(self, state: State, held: int) -> StoredRows:
        """The latest REPLAY_MOST, the oldest of them first."""
        found = self.store.read("SELECT rowid FROM feedback WHERE state = ? AND held = ? ORDER BY rowid DESC LIMIT ?",
                                state, held, REPLAY_MOST)
        return self._readable(row["rowid"] for row in reversed(found))

    def _readable(self, rowids: Iterable[int]) -> StoredRows:
        """Those that are not damaged. One is in memory at a time."""
        found = []
        for rowid in rowids:
            for item in self.store.objects("feedback", self._columns(rowid), item_of):
                if item.row is not None:
                    found.append(StoredRow(rowid, item.id, item.question, "messages" in item.row))
        return found

    def _columns(self, rowid: int) -> Iterable[sqlite3.Row]:
        return self.store.read("SELECT * FROM feedback WHERE rowid = ?", rowid)

    def _spread(self, judges: Sequence[sqlite3.Row], places: int) -> Sequence[int]:
        """The rowids of at most `places` of them, as evenly from all rounds as their sizes allow."""
        rounds: dict[str, list[str]] = {}
        for judge in judges:
            rounds.setdefault(judge["job"], []).append(judge["question"])
        chosen = self.holdout.spread(rounds, places)
        return [judge["rowid"] for judge in judges if judge["question"] in chosen]

    def waiting_ids(self) -> Sequence[str]:
        """Of items with a row that waits for a job, the oldest first."""
        return [row["id"] for row in self.store.read(f"SELECT id FROM feedback WHERE {WAITS} ORDER BY rowid")]

    def waiting(self) -> int:
        """How many rows wait for a job, those that will judge included."""
        return int(self.store.read(f"SELECT count(*) FROM feedback WHERE {WAITS}")[0][0])

    def set_aside(self, id: str) -> None:
        """Learn nothing from this item."""
        with self.store.write() as db:
            db.execute("UPDATE feedback SET state = 'aside' WHERE id = ?", (id,))

    def assign(self, ids: Iterable[str], job: str) -> None:
        """The rows of these items belong to a job."""
        with self.store.write() as db:
            db.executemany("UPDATE feedback SET job = ? WHERE id = ?", [(job, id) for id in ids])

    def settle(self, job: str, state: State) -> None:
        """The job is over: its new rows were used, or are set aside; new: they wait for another job."""
        with self.store.write() as db:
            db.execute("UPDATE feedback SET state = ?, job = CASE ? WHEN 'new' THEN NULL ELSE job END "
                       "WHERE job = ? AND state = 'new'", (state, state, job))

    def unsettled(self) -> Sequence[str]:
        """Jobs whose rows wait to be settled."""
        return [row["job"] for row in self.store.read(
            "SELECT DISTINCT job FROM feedback WHERE state = 'new' AND job IS NOT NULL")]

    # ---- room ---------------------------------------------------------------------------------------------------

    def _make_room(self, db: sqlite3.Connection, size: int, waits: bool) -> None:
        """For an item of `size` bytes. Raises TooMuchError where none can be made."""
        most = self.config.feedback_rows
        most_bytes = self.config.feedback_size * MIB
        waiting, waiting_bytes = _count(db, "WHERE state = 'new'")
        if waits and (waiting >= most // 2 or waiting_bytes + size > most_bytes // 2):
            raise TooMuchError(f"{waiting} rows of feedback ({waiting_bytes / MIB:.1f} MiB) wait to be learned, at "
                               f"most {most // 2} ({most_bytes / 2 / MIB:g} MiB) may wait",
                               "learn them first, or start the daemon with a larger --feedback-rows or --feedback-size")
        count, nbytes = _count(db, "")
        if count < most and nbytes + size <= most_bytes:
            return
        excess = count + 1 - int(most * (1 - SPARE))
        excess_bytes = nbytes + size - int(most_bytes * (1 - SPARE))
        leaving = []
        for found in self._dispensable(db):
            if excess <= 0 and excess_bytes <= 0:
                break
            leaving.append((found["rowid"],))
            excess -= 1
            excess_bytes -= found["size"]
        db.executemany("DELETE FROM feedback WHERE rowid = ?", leaving)
        count, nbytes = _count(db, "")
        if count >= most or nbytes + size > most_bytes:
            raise TooMuchError(f"{count} pieces of feedback are kept ({nbytes / MIB:.1f} MiB), at most {most} "
                               f"({self.config.feedback_size} MiB) may be, and all of them are needed",
                               "learn those that wait, or start the daemon with a larger --feedback-rows or "
                               "--feedback-size")

    def _dispensable(self, db: sqlite3.Connection) -> Iterator[sqlite3.Row]:
        """(rowid, size) of what may be removed: items of no use first, the oldest of each kind first."""
        useless = "state IN ('counted', 'aside', 'withdrawn')"
        for which in (useless, "state = 'used' AND held = 0"):
            yield from db.execute(f"SELECT rowid, size FROM feedback WHERE {which} ORDER BY rowid").fetchall()
        kept = {*self._spread(db.execute(JUDGES).fetchall(), MOST)}
        held = db.execute("SELECT rowid, size FROM feedback WHERE state = 'used' AND held = 1 ORDER BY rowid")
        yield from (found for found in held.fetchall() if found["rowid"] not in kept)

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


def latest(rows: Iterable[StoredRow]) -> StoredRows:
    """The last of each question, in order of time."""
    found: dict[str, StoredRow] = {}
    for row in rows:
        found.pop(row.question, None)
        found[row.question] = row
    return [*found.values()]


def _count(db: sqlite3.Connection, where: str) -> tuple[int, int]:
    """(items, their bytes)."""
    count, nbytes = db.execute(f"SELECT count(*), coalesce(sum(size), 0) FROM feedback {where}").fetchone()
    return count, nbytes


def _withdraw(db: sqlite3.Connection, question: str, answer: str) -> None:
    """Nothing more is learned from, or judged by, earlier words that this answer is right."""
    said = db.execute("SELECT rowid FROM feedback WHERE question = ? AND state IN ('new', 'used')", (question,))
    for (rowid,) in said.fetchall():
        (text,) = db.execute("SELECT row FROM feedback WHERE rowid = ?", (rowid,)).fetchone()
        with suppress(ValueError, DataError, RecursionError):  # a damaged row says nothing
            if answer_of(read_row(text)).strip() == answer.strip():
                db.execute("UPDATE feedback SET state = 'withdrawn' WHERE rowid = ?", (rowid,))
