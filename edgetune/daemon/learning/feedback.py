"""What people said of answers: corrections and thumbs, as rows to learn from and rows to judge by.

A row is `new` until a job has learned from it and the gate has spoken: then it is `used`, and jobs to come learn it
again, or, where the job did not pass, set `aside`: nothing is learned from it or judged by it any more. A later word on
the same answer takes an earlier one back: it is `withdrawn`. One question in five is held out for the gate
(holdout.py): a question stays on its side.

There are at most `feedback_rows` pieces of `feedback_size` MiB, half of them waiting. Where a new one needs room, those
of no use leave first, then what was learned longest ago, then judges of earlier rounds but for those that the next job
would ask.
"""

from __future__ import annotations

import json
import secrets
import sqlite3
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, fields
from typing import Any

from ...data.rows import check_row
from ...errors import DataError, FormatError, TooMuchError, UsageError
from ...persisted import from_json
from ..options import DaemonConfig
from ..state.database import Store, dump, now
from ..state.files import MIB, digest
from ..state.holdout import MOST, Holdout
from .items import HEADING, FeedbackItem, Heading, Rating, Row, Rows, State, heading_of

REPLAY_MOST = 2000  # rows read for replay, the latest
SPARE = 0.01  # of the limits is made free at once, so that not each new piece of feedback looks for room
JUDGES = """SELECT max(rowid) AS rowid, question, job FROM feedback
            WHERE state = 'used' AND held = 1 GROUP BY question ORDER BY 1"""  # the last answer to each question
WAITS = "row IS NOT NULL AND state = 'new' AND job IS NULL"


@dataclass(frozen=True)
class TrainingRows:
    """Rows of a job. new, earlier: to learn; established, fresh: to judge by, of earlier rounds and of this one. ids:
    of its notes.
    """

    new: Rows
    earlier: Rows
    established: Rows
    fresh: Rows
    ids: list[str]

    @property
    def held(self) -> Rows:
        """All rows to judge by, those of earlier rounds first."""
        return self.established + self.fresh


Notes = list[FeedbackItem]


class Feedback:
    """Feedback in the store. For any number of threads."""

    def __init__(self, store: Store, holdout: Holdout, config: DaemonConfig) -> None:
        self.store = store
        self.holdout = holdout
        self.config = config
        self._name_questions()

    def add(self, *, messages: Sequence[Mapping[str, Any]] | None = None, prompt: str | None = None, answer: str = "",
            rating: Rating | None = None, correction: str | None = None, model: str = "",
            tools: Sequence[Mapping[str, Any]] | None = None) -> FeedbackItem:
        """Feedback for an answer to messages (and tools), or to a prompt.

        A correction is learned; a thumb up without one confirms the answer, which is learned; a thumb down alone is
        counted. A thumb down, or a correction by another text, takes back what was said for that answer before.
        Raises UsageError for feedback that says nothing or contradicts itself, DataError for messages that are none,
        TooMuchError where no more is kept.
        """
        _check_words(answer, rating, correction)
        _check_characters(model)
        right = correction if correction is not None else answer if rating == "up" else None
        row = _row(messages, prompt, right or "", tools)
        if right is not None and not right.strip():
            raise UsageError("the answer to learn is empty", "give it as the correction, or rate the answer 'down'")
        asked = question(row)
        with self.store.write() as db:
            if rating == "down" or (correction is not None and correction.strip() != answer.strip()):
                _take_back(db, asked, answer)
            learns = right is not None
            note = FeedbackItem(f"fb-{secrets.token_hex(12)}", now(), rating, model, row if learns else None,
                        learns and self._is_held(db, asked), "new" if learns else "counted", None, asked)
            self._insert(db, note)
        return note

    def _is_held(self, db: sqlite3.Connection, asked: str) -> bool:
        """A question that was answered before stays on its side, also where another rule decided then."""
        known = db.execute("SELECT held FROM feedback WHERE question = ? AND row IS NOT NULL LIMIT 1", (asked,))
        found = known.fetchone()
        return bool(found[0]) if found else self.holdout.holds(asked)

    def _insert(self, db: sqlite3.Connection, note: FeedbackItem) -> None:
        row = dump(note.row) if note.row else None
        size = len(row or "") + len(note.model.encode())
        self._make_room(db, size, waits=note.row is not None)
        db.execute("INSERT INTO feedback (id, created_at, rating, model, row, held, state, job, question, size) "
                   "VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
                   (note.id, note.created_at, note.rating, note.model, row, note.held, note.state, note.job,
                    note.question, size))

    def list(self, after: str | None = None, limit: int = 100) -> Sequence[FeedbackItem]:
        """The newest first, at most `limit` of them, those older than the note `after`. Raises NotFoundError."""
        return self.store.newest("feedback", _note, self.store.before("feedback", after), limit)

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

    def lesson(self) -> TrainingRows:
        """What a job that begins now learns and is judged by. Where a question was answered again, the last answer
        counts; a new one may contradict an earlier one that judges.

        MOST rows judge: this round's have half of the places, those of earlier rounds the other half, and either what
        the other does not need. So no flood of new rows, and no large round, displaces what was established.
        """
        new = self._notes("new", 0)
        held = self._notes("new", 1)
        asked_again = {note.question for note in new}
        earlier = [note for note in self._notes("used", 0) if note.question not in asked_again]
        judges = self.store.read(JUDGES)
        fresh = latest(held)
        places = max(MOST // 2, MOST - len(judges))
        chosen = self.holdout.lowest([note.question for note in fresh], places)
        established = self._established(judges, MOST - len(chosen))
        return TrainingRows(_rows(latest(new)), _rows(latest(earlier)), _rows(established),
                      _rows(note for note in fresh if note.question in chosen), [note.id for note in new + held])

    def _notes(self, state: State, held: int) -> Notes:
        """The oldest first."""
        found = self.store.read("SELECT * FROM feedback WHERE state = ? AND held = ? ORDER BY rowid DESC LIMIT ?",
                                state, held, REPLAY_MOST)
        return self.store.objects("feedback", reversed(found), _note)

    def _established(self, judges: Sequence[sqlite3.Row], places: int) -> Notes:
        """At most `places` of them, as evenly from all rounds as there are, in order of time."""
        kept = self._spread(judges, places)
        found = self.store.read(f"SELECT * FROM feedback WHERE rowid IN ({', '.join('?' * len(kept))}) ORDER BY rowid",
                                *kept)
        return self.store.objects("feedback", found, _note)

    def _spread(self, judges: Sequence[sqlite3.Row], places: int) -> Sequence[int]:
        """The rowids of at most `places` of them."""
        rounds: dict[str, list[str]] = {}
        for judge in judges:
            rounds.setdefault(judge["job"], []).append(judge["question"])
        chosen = self.holdout.spread(rounds, places)
        return [judge["rowid"] for judge in judges if judge["question"] in chosen]

    def fresh(self) -> Notes:
        """Those with a row that waits for a job, the oldest first."""
        found = self.store.read(f"SELECT * FROM feedback WHERE {WAITS} ORDER BY rowid")
        return self.store.objects("feedback", found, _note)

    def waiting(self) -> int:
        """Rows that wait for a job, those that will judge included."""
        return int(self.store.read(f"SELECT count(*) FROM feedback WHERE {WAITS}")[0][0])

    def set_aside(self, id: str) -> None:
        """Learn nothing from this note."""
        with self.store.write() as db:
            db.execute("UPDATE feedback SET state = 'aside' WHERE id = ?", (id,))

    def assign(self, ids: Iterable[str], job: str) -> None:
        """These notes' rows are those of a job."""
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
        """For a piece of `size` bytes. Raises TooMuchError where none can be made."""
        most = self.config.feedback_rows
        most_bytes = self.config.feedback_size * MIB
        waiting, waiting_bytes = _used(db, "WHERE state = 'new'")
        if waits and (waiting >= most // 2 or waiting_bytes + size > most_bytes // 2):
            raise TooMuchError(f"{waiting} rows of feedback ({waiting_bytes / MIB:.1f} MiB) wait to be learned, at "
                               f"most {most // 2} ({most_bytes / 2 / MIB:g} MiB) may wait",
                               "learn them first, or start the daemon with a larger --feedback-rows or --feedback-size")
        count, nbytes = _used(db, "")
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
        count, nbytes = _used(db, "")
        if count >= most or nbytes + size > most_bytes:
            raise TooMuchError(f"{count} pieces of feedback are kept ({nbytes / MIB:.1f} MiB), at most {most} "
                               f"({self.config.feedback_size} MiB) may be, and all of them are needed",
                               "learn those that wait, or start the daemon with a larger --feedback-rows or "
                               "--feedback-size")

    def _dispensable(self, db: sqlite3.Connection) -> Iterator[sqlite3.Row]:
        """(rowid, size) of what may leave: those of no use first, the oldest of each kind first."""
        useless = "state IN ('counted', 'aside', 'withdrawn')"
        for which in (useless, "state = 'used' AND held = 0"):
            yield from db.execute(f"SELECT rowid, size FROM feedback WHERE {which} ORDER BY rowid").fetchall()
        kept = {*self._spread(db.execute(JUDGES).fetchall(), MOST)}
        held = db.execute("SELECT rowid, size FROM feedback WHERE state = 'used' AND held = 1 ORDER BY rowid")
        yield from (found for found in held.fetchall() if found["rowid"] not in kept)

    def _name_questions(self) -> None:
        """Of rows that an earlier version wrote. One that cannot be read has none."""
        wanting = "SELECT rowid, row FROM feedback WHERE question IS NULL AND row IS NOT NULL LIMIT 100"
        while found := self.store.read(wanting):
            with self.store.write() as db:
                for each in found:
                    try:
                        name = question(_read(each["row"]))
                    except (ValueError, DataError, RecursionError):
                        name = ""
                    db.execute("UPDATE feedback SET question = ? WHERE rowid = ?", (name, each["rowid"]))


def question(row: Row) -> str:
    """Digest of a row without its last answer."""
    asked = {"messages": row["messages"][:-1]} if "messages" in row else {"prompt": row["prompt"]}
    return digest(asked)


def latest(notes: Iterable[FeedbackItem]) -> Notes:
    """The last of each question, in order of time."""
    found: dict[str, FeedbackItem] = {}
    for note in notes:
        found.pop(note.question, None)
        found[note.question] = note
    return [*found.values()]


def _rows(notes: Iterable[FeedbackItem]) -> Rows:
    return [note.row for note in notes if note.row]


def _used(db: sqlite3.Connection, where: str) -> tuple[int, int]:
    """(pieces, their bytes)."""
    count, nbytes = db.execute(f"SELECT count(*), coalesce(sum(size), 0) FROM feedback {where}").fetchone()
    return count, nbytes


def _take_back(db: sqlite3.Connection, asked: str, answer: str) -> None:
    """Nothing more is learned from, or judged by, earlier words that this answer is right."""
    for found in db.execute("SELECT rowid, row FROM feedback WHERE question = ? AND state IN ('new', 'used')",
                            (asked,)).fetchall():
        with suppress(ValueError, DataError, RecursionError):  # a damaged row says nothing
            if _answer(_read(found["row"])).strip() == answer.strip():
                db.execute("UPDATE feedback SET state = 'withdrawn' WHERE rowid = ?", (found["rowid"],))


def _answer(row: Row) -> str:
    return str(row["messages"][-1]["content"] if "messages" in row else row["completion"])


def _check_words(answer: str, rating: str | None, correction: str | None) -> None:
    """Raises UsageError for feedback that says nothing or contradicts itself."""
    if rating not in (None, "up", "down"):
        raise UsageError(f"rating is {rating!r:.40}", "use 'up' or 'down'")
    if rating is None and correction is None:
        raise UsageError("neither rating nor correction is given", "give one of them")
    is_same = correction is not None and correction.strip() == answer.strip()
    if rating == "up" and correction is not None and not is_same:
        raise UsageError("the rating is 'up', and the correction is another answer", "leave one of them out")
    if rating == "down" and is_same:
        raise UsageError("the rating is 'down', and the correction is the same answer",
                         "write what is right, or leave one of them out")


def _row(messages: Sequence[Mapping[str, Any]] | None, prompt: str | None, answer: str,
         tools: Sequence[Mapping[str, Any]] | None) -> Row:
    """Earlier answers of a conversation are not learned: nobody said that they are right."""
    if (messages is None) == (prompt is None):
        raise UsageError("neither messages nor a prompt are given, or both", "give one of them")
    row: Row = {"prompt": prompt, "completion": answer}
    if messages is not None:
        history = [{**message, "weight": 0} if isinstance(message, Mapping) and message.get("role") == "assistant"
                   else message for message in messages]
        row = {"messages": [*history, {"role": "assistant", "content": answer}]}
        row |= {"tools": [*tools]} if tools else {}
    check_row(row)
    _check_characters(row)
    return row


def _check_characters(value: Any) -> None:
    """JSON may hold half a surrogate pair, which neither a tokenizer nor SQLite takes."""
    try:
        json.dumps(value, ensure_ascii=False).encode()
    except UnicodeEncodeError:
        raise DataError("a text holds half a surrogate pair, which is no character", "send whole ones") from None


def _read(text: str) -> Row:
    """A stored row. Raises ValueError, DataError or RecursionError where it cannot be read."""
    row: Row = json.loads(text)
    if check_row(row) not in ("messages", "prompt"):
        raise ValueError("no row of messages, or of prompt and completion")
    return row


def _note(columns: Mapping[str, Any]) -> FeedbackItem:
    """Raises FormatError, as Store.objects wants it."""
    try:
        row = _read(columns["row"]) if columns["row"] else None
    except DataError as error:
        raise FormatError(error.what) from None
    said = {spec.name: columns[spec.name] for spec in fields(FeedbackItem)}  # an older database has more columns
    said.update(row=row, held=bool(columns["held"]), question=columns["question"] or "")
    return from_json(FeedbackItem, said, "the row")
