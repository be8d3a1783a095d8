"""What people said of answers: corrections and thumbs, as rows to learn from and rows to judge by.

A row is `new` until a job has learned from it and the gate has spoken: then it is `used`, and jobs to come learn it
again, or, where the job did not pass, set `aside`: nothing is learned from it or judged by it any more. One row in five
is held out for the gate, by the digest of its question: a question stays on its side for ever.
"""

from __future__ import annotations

import json
import secrets
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from ..errors import DataError, UsageError
from ..rows import check_row
from .files import digest
from .gate import mark
from .recipe import HELD_MOST, HELD_SHARE
from .store import Store, dump, now

Row = dict[str, Any]
Rows = list[Row]
REPLAY_MOST = 2000  # rows read for replay, the latest
WAITS = "row IS NOT NULL AND state = 'new' AND job IS NULL"
State = Literal["new", "used", "aside"]


@dataclass(frozen=True)
class Note:
    """A piece of feedback. row: what there is to learn, None where nothing is. state: of the row, as above. held: it
    judges and is not learned. reason: what becomes of it, one sentence.
    """

    id: str
    created_at: int
    rating: str | None
    model: str
    row: Row | None
    held: bool
    state: State
    job: str | None

    @property
    def reason(self) -> str:
        if self.row is None:
            return "nothing to learn: a thumb down says that an answer is wrong, a correction would say what is right"
        if self.state == "aside":
            return f"set aside: what {self.job} learned was found worse" if self.job else "this model cannot learn it"
        if self.held:
            return "held out: it judges what is learned"
        return f"learned by {self.job}" if self.state == "used" else "waits to be learned"


@dataclass(frozen=True)
class Lesson:
    """Rows of a job. new, earlier: to learn; held: to judge by, those of this round marked. ids: of its notes."""

    new: Rows
    earlier: Rows
    held: Rows
    ids: list[str]


Notes = list[Note]


class Feedback:
    """Feedback in the store. For any number of threads."""

    def __init__(self, store: Store) -> None:
        self.store = store

    def add(self, *, messages: Sequence[Mapping[str, Any]] | None = None, prompt: str | None = None, answer: str = "",
            rating: str | None = None, correction: str | None = None, model: str = "",
            tools: Sequence[Mapping[str, Any]] | None = None) -> Note:
        """Feedback for an answer to messages (and tools), or to a prompt.

        A correction is learned; a thumb up without one confirms the answer, which is learned; a thumb down alone is
        counted. Raises UsageError for feedback that says nothing or contradicts itself, DataError for messages that are
        none.
        """
        if rating not in (None, "up", "down"):
            raise UsageError(f"rating is {rating!r:.40}", "use 'up' or 'down'")
        if rating is None and correction is None:
            raise UsageError("neither rating nor correction is given", "give one of them")
        if rating == "up" and correction is not None and correction.strip() != answer.strip():
            raise UsageError("the rating is 'up', and the correction is another answer", "leave one of them out")
        _check_characters(model)
        right = correction if correction is not None else answer if rating == "up" else None
        row = _row(messages, prompt, right or "", tools)
        if right is not None and not right.strip():
            raise UsageError("the answer to learn is empty", "give it as the correction, or rate the answer 'down'")
        note = Note(f"fb-{secrets.token_hex(12)}", now(), rating, model, row if right is not None else None,
                    right is not None and is_held(row), "new", None)
        with self.store.write() as db:
            db.execute("INSERT INTO feedback VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)",
                       (note.id, note.created_at, rating, model, dump(note.row) if note.row else None,
                        digest(note.row) if note.row else None, note.held, note.state, None))
        return note

    def list(self, after: str | None = None, limit: int = 100) -> Sequence[Note]:
        """The newest first, at most `limit` of them, those older than the note `after`. Raises NotFoundError."""
        return [_note(row) for row in self.store.read(
            "SELECT * FROM feedback WHERE rowid < ? ORDER BY rowid DESC LIMIT ?",
            self.store.before("feedback", after), limit)]

    def counts(self) -> dict[str, int]:
        """Rows to learn that are new and used, rows that judge (held), and rows set aside."""
        found = {(row["state"], row["held"]): row["n"] for row in self.store.read(
            "SELECT state, held, count(*) AS n FROM feedback WHERE row IS NOT NULL GROUP BY state, held")}
        return {"new": found.get(("new", 0), 0), "used": found.get(("used", 0), 0),
                "held": found.get(("new", 1), 0) + found.get(("used", 1), 0),
                "aside": found.get(("aside", 0), 0) + found.get(("aside", 1), 0)}

    # ---- learning -----------------------------------------------------------------------------------------------

    def lesson(self) -> Lesson:
        """What a job that begins now learns and is judged by. Where a question was answered again, the last answer
        counts; a new one may contradict an earlier one that judges.
        """
        new, held_new = self._rows("new", 0), self._rows("new", 1)
        questions = {question(note.row) for note in new if note.row}
        earlier = [note for note in self._rows("used", 0) if note.row and question(note.row) not in questions]
        held = latest(self._rows("used", 1)) + [mark(row) for row in latest(held_new)]
        return Lesson(latest(new), latest(earlier), held[-HELD_MOST:], [note.id for note in new + held_new])

    def _rows(self, state: State, held: int) -> Notes:
        """The oldest first."""
        found = self.store.read("SELECT * FROM feedback WHERE state = ? AND held = ? AND row IS NOT NULL "
                                "ORDER BY rowid DESC LIMIT ?", state, held, REPLAY_MOST)
        return [_note(row) for row in reversed(found)]

    def fresh(self) -> Notes:
        """Those with a row that waits for a job, the oldest first."""
        return [_note(row) for row in self.store.read(f"SELECT * FROM feedback WHERE {WAITS} ORDER BY rowid")]

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


def is_held(row: Row) -> bool:
    """Whether the row's question is one of those that are never learned."""
    return int(question(row)[:8], 16) % HELD_SHARE == 0


def question(row: Row) -> str:
    """Digest of a row without its last answer."""
    asked = {"messages": row["messages"][:-1]} if "messages" in row else {"prompt": row["prompt"]}
    return digest(asked)


def latest(notes: Iterable[Note]) -> Rows:
    """The last row of each question, in order of time."""
    found: dict[str, Row] = {}
    for note in notes:
        if note.row:
            found.pop(question(note.row), None)
            found[question(note.row)] = note.row
    return [*found.values()]


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


def _note(row: Any) -> Note:
    learned = json.loads(row["row"]) if row["row"] else None
    return Note(row["id"], row["created_at"], row["rating"], row["model"], learned, bool(row["held"]), row["state"],
                row["job"])
