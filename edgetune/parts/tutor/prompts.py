"""Prompts of people, kept only for the tutor and only with the operator's --keep-prompts.

Only the question of an answered request without `store: false` is kept, never the answer or the sender. A repeated
prompt is kept once, as the newest. At most `most` are kept, and the oldest are deleted first. A daemon that may keep
fewer than it has, or none, deletes the others when it starts.
"""

from __future__ import annotations

import json
import secrets
import sqlite3
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, cast

from ...daemon.learning.items import SHOWN, Row, make_row
from ...daemon.options import DaemonConfig
from ...daemon.running import RunningPart
from ...daemon.state.database import Store, dump, now
from ...data.prompts import check_learnable
from ...data.question import question_digest, question_text
from ...errors import DataError, FormatError, NotFoundError, UsageError
from ...persisted import from_json
from ...serving.question import Question
from .task import own

if TYPE_CHECKING:
    from ...daemon.service import Service

LARGEST = 16 << 10  # bytes of a prompt with its conversation, as JSON: far more than is learned from one
WAITS = "job IS NULL"
TABLE = """CREATE TABLE prompts (
    id TEXT PRIMARY KEY, created_at INTEGER NOT NULL,
    row TEXT NOT NULL,              -- JSON of what was asked, without any answer
    question TEXT NOT NULL UNIQUE,  -- its digest, as in feedback
    job TEXT)                       -- the last one that took it; null: none did
"""


@dataclass(frozen=True)
class KeptPrompt:
    """A prompt. row: with messages or a prompt. question: its digest. job: the last that took it, or None."""

    id: str
    created_at: int
    row: Row
    question: str
    job: str | None

    @property
    def asked(self) -> str:
        """Returns the beginning of the last question."""
        return question_text(_answered(self.row))[:SHOWN]


class KeptPrompts:
    """The prompts in the store, `most` of them at most; 0: none is kept. For any number of threads. on_deleted: called
    in the transaction that deletes a prompt for good, with the digest of its question.
    """

    def __init__(self, store: Store, most: int) -> None:
        self.store = store
        self.most = most
        self.on_deleted: list[Callable[[sqlite3.Connection, str], None]] = []
        if not store.read("SELECT 1 FROM sqlite_master WHERE name = 'prompts'"):
            with store.write() as db:
                db.execute(TABLE)
        if self._count("1") > most:
            self._trim()
            store.wipe()

    def keep(self, question: Question) -> bool:
        """Keeps a prompt; returns whether it was kept. It is not kept if the limit is 0, if the request forbids it, or
        if the tutor could not ask it again: token ids, tools, echo, logprobs, and more than LARGEST bytes.
        """
        measured = question.echo or question.logprobs is not None
        if not (self.most and question.may_be_kept) or measured or question.shown_tools:
            return False
        row = {name: value for name, value in question.content.items() if value}
        try:
            check_learnable(row)
            name = question_digest(_answered(row), by_shape=True)
            written = dump(row)
        except (DataError, UsageError, TypeError, ValueError, RecursionError):
            return False
        if len(written) > LARGEST:
            return False
        with self.store.write() as db:
            (last,) = db.execute("SELECT coalesce(max(rowid), 0) FROM prompts").fetchone()
            db.execute("INSERT INTO prompts (rowid, id, created_at, row, question) VALUES (?, ?, ?, ?, ?) "
                       "ON CONFLICT (question) DO UPDATE SET rowid = excluded.rowid, created_at = excluded.created_at",
                       (last + 1, f"prompt-{secrets.token_hex(12)}", now(), written, name))
        if self._count("1") > self.most:
            self._trim()
        return True

    def _trim(self) -> None:
        with self.store.write() as db:
            db.execute("DELETE FROM prompts WHERE rowid NOT IN (SELECT rowid FROM prompts ORDER BY rowid DESC LIMIT ?)",
                       (self.most,))

    def get(self, id: str) -> KeptPrompt:
        """Returns a prompt. Raises NotFoundError, also for one that is damaged."""
        return self.store.one("prompts", self.store.read("SELECT * FROM prompts WHERE id = ?", id), _read, _unknown(id))

    def list(self, after: str | None = None, limit: int = 100) -> Sequence[KeptPrompt]:
        """Returns prompts, the newest first, at most `limit`, of those older than `after`. Raises NotFoundError."""
        return self.store.newest("prompts", _read, self.store.before("prompts", after), limit)

    def counts(self) -> dict[str, int]:
        """Counts prompts that are kept, and those that no job has taken; the third number is the most that are kept."""
        return {"kept": self._count("1"), "new": self.waiting(), "most": self.most}

    def delete(self, id: str) -> None:
        """Deletes a prompt permanently, also a damaged one. Raises NotFoundError."""
        if not self._delete("id = ?", id):
            raise _unknown(id)

    def clear(self) -> int:
        """Deletes all prompts permanently; returns how many there were."""
        return self._delete("1")

    def _delete(self, where: str, *values: str) -> int:
        with self.store.write() as db:
            deleted = db.execute(f"SELECT id, question FROM prompts WHERE {where}", values).fetchall()
            db.execute(f"DELETE FROM prompts WHERE {where}", values)
            for _, question in deleted:
                for forget in self.on_deleted:
                    forget(db, question)
        for id, _ in deleted:
            self.store.forget("prompts", id)
        self.store.wipe()
        return len(deleted)

    # ---- learning -----------------------------------------------------------------------------------------------

    def waiting(self) -> int:
        """Counts prompts that no job has taken."""
        return self._count(WAITS)

    def renew(self) -> None:
        """Lets all prompts wait again, because the active adapter has not learned from them."""
        with self.store.write() as db:
            db.execute("UPDATE prompts SET job = NULL")

    def _count(self, where: str) -> int:
        return int(self.store.read(f"SELECT count(*) FROM prompts WHERE {where}")[0][0])


def take(db: sqlite3.Connection, ids: Sequence[str], job: str) -> None:
    """Assigns these prompts to a job, within a transaction."""
    db.executemany("UPDATE prompts SET job = ? WHERE id = ?", [(job, id) for id in ids])


def _answered(row: Mapping[str, Any]) -> Row:
    """Returns the row of feedback that would give an empty answer to a prompt."""
    return make_row(row.get("messages"), row.get("prompt"), "", None)


def _read(columns: dict[str, Any]) -> KeptPrompt:
    columns["row"] = json.loads(columns["row"])
    try:
        check_learnable(columns["row"])
    except DataError as error:
        raise FormatError(error.what) from None
    return from_json(KeptPrompt, columns, "the row")


def _unknown(id: str) -> NotFoundError:
    return NotFoundError(f"there is no prompt {id!r:.80}", "list them to see what is kept")


NAME = "tutor"  # of the part


class RunningTutor(RunningPart):
    """The kept prompts of a daemon. It runs in every daemon: one that may keep none deletes those of before."""

    prompts: KeptPrompts

    def __init__(self, config: DaemonConfig) -> None:
        self.most = own(config).keep_prompts

    @property
    def keeps_questions(self) -> bool:
        return self.most > 0

    @property
    def note(self) -> Callable[[Question], object] | None:
        return self.prompts.keep if self.most else None

    def join(self, service: Service) -> None:
        self.prompts = KeptPrompts(service.store, self.most)
        self.prompts.on_deleted.append(service.traffic.forget)

    def device(self) -> dict[str, Any]:
        return {"keep_prompts": self.most}


def prompts_of(service: Service) -> KeptPrompts:
    """Returns the prompts that a daemon keeps."""
    return cast(RunningTutor, service.running[NAME]).prompts
