"""What the daemon must not forget: SQLite in WAL mode, in STATE/state.db.

A transaction that was committed survives a power cut (synchronous = FULL). Files and adapters lie beside, in folders of
the state; a row that names one is written after it is whole and synced, and deleted before it is.
"""

from __future__ import annotations

import json
import re
import sqlite3
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from ..errors import DiskError, FormatError, NotFoundError

NAME = "state.db"
VERSION = 1  # of the schema, in user_version
SCHEMA = """
CREATE TABLE files (
    id TEXT PRIMARY KEY,            -- file-...; its rows lie in STATE/files/ID.jsonl
    name TEXT NOT NULL,             -- as the client called it: shown, never opened
    purpose TEXT NOT NULL,
    bytes INTEGER NOT NULL, rows INTEGER NOT NULL, sha256 TEXT NOT NULL, created_at INTEGER NOT NULL);
CREATE TABLE jobs (
    id TEXT PRIMARY KEY,            -- ftjob-...; its run lies in STATE/runs/ID
    created_at INTEGER NOT NULL, started_at INTEGER, finished_at INTEGER,
    status TEXT NOT NULL,           -- queued, running, paused, succeeded, failed, cancelled
    origin TEXT NOT NULL,           -- api, or learn: begun by the daemon itself
    model TEXT NOT NULL, suffix TEXT NOT NULL, seed INTEGER NOT NULL,
    training_file TEXT, validation_file TEXT, -- null where rows come from feedback
    method TEXT NOT NULL, metadata TEXT NOT NULL, -- JSON, as the client gave them
    config TEXT NOT NULL,           -- JSON of TrainConfig
    trained_tokens INTEGER, result TEXT, -- adapter
    error TEXT);                    -- JSON {code, message, param}
CREATE TABLE events (
    seq INTEGER PRIMARY KEY AUTOINCREMENT,
    job TEXT NOT NULL REFERENCES jobs(id), created_at INTEGER NOT NULL,
    level TEXT NOT NULL,            -- info, warn, error
    type TEXT NOT NULL,             -- message, or metrics: a line of the run's metrics.jsonl
    message TEXT NOT NULL, data TEXT NOT NULL); -- JSON
CREATE INDEX events_of_job ON events(job, seq);
CREATE TABLE checkpoints (          -- a measurement of the held-out loss
    seq INTEGER PRIMARY KEY AUTOINCREMENT,
    job TEXT NOT NULL REFERENCES jobs(id), created_at INTEGER NOT NULL, step INTEGER NOT NULL, metrics TEXT NOT NULL);
CREATE TABLE adapters (
    id TEXT PRIMARY KEY,            -- ft:MODEL:SUFFIX:...; its folder is STATE/adapters/FOLDER
    folder TEXT NOT NULL UNIQUE, job TEXT NOT NULL, created_at INTEGER NOT NULL,
    sha256 TEXT NOT NULL,           -- of adapter.gguf
    verdict TEXT NOT NULL);         -- JSON: whether the gate let it pass, why, scores of both
CREATE TABLE service (              -- what answers since when: the last line holds
    seq INTEGER PRIMARY KEY AUTOINCREMENT,
    at INTEGER NOT NULL, adapter TEXT, -- null: the base alone
    cause TEXT NOT NULL);
CREATE TABLE feedback (
    id TEXT PRIMARY KEY, created_at INTEGER NOT NULL,
    rating TEXT, model TEXT NOT NULL,
    row TEXT,                       -- JSON of a row to learn from; null where there is none
    sha256 TEXT,                    -- of it
    held INTEGER NOT NULL,          -- 1: never trained on, the gate asks it
    state TEXT NOT NULL,            -- new, used, or aside: the job that learnt it did not pass
    job TEXT);                      -- the last one that used it
CREATE INDEX feedback_by_state ON feedback(state, held);
"""


class Store:
    """The database below `folder`, made if it is not there. For any number of threads; a connection each.

    Raises FormatError for a database that is damaged or of a later edgetune, DiskError where the disk refuses.
    """

    def __init__(self, folder: Path) -> None:
        self.path = folder / NAME
        self._own = threading.local()
        self._all: dict[threading.Thread, sqlite3.Connection] = {}
        self._opening = threading.Lock()
        self._writing = threading.Lock()  # SQLite would make writers poll
        with self.write() as db:
            (version,) = db.execute("PRAGMA user_version").fetchone()
            if version == 0:
                for statement in re.sub("--.*", "", SCHEMA).split(";"):
                    db.execute(statement)
                db.execute(f"PRAGMA user_version = {VERSION}")
            elif version != VERSION:
                raise FormatError(f"{self.path} has the version {version}, this edgetune knows {VERSION}",
                                  "use the edgetune that wrote it, or another state folder")

    def _connection(self) -> sqlite3.Connection:
        if not hasattr(self._own, "db"):
            try:
                db = sqlite3.connect(self.path, isolation_level=None, timeout=30, check_same_thread=False)
                db.row_factory = sqlite3.Row
                for pragma in ("journal_mode = WAL", "synchronous = FULL", "foreign_keys = ON"):
                    db.execute(f"PRAGMA {pragma}")
            except sqlite3.Error as error:
                raise self._mended(error) from None
            self._own.db = db
            with self._opening:
                for thread in [thread for thread in self._all if not thread.is_alive()]:
                    self._all.pop(thread).close()
                self._all[threading.current_thread()] = db
        return self._own.db  # type: ignore[no-any-return]

    def read(self, sql: str, *values: Any) -> list[sqlite3.Row]:
        try:
            return self._connection().execute(sql, values).fetchall()
        except sqlite3.Error as error:
            raise self._mended(error) from None

    def before(self, table: str, id: str | None) -> int:
        """For lists that begin after the object `id`: the rowid that theirs lie below. Raises NotFoundError."""
        if id is None:
            return 2**62
        if found := self.read(f"SELECT rowid FROM {table} WHERE id = ?", id):
            return int(found[0][0])
        raise NotFoundError(f"there is no {id!r:.80} to go on after", "give the id of the last one that you got")

    @contextmanager
    def write(self) -> Iterator[sqlite3.Connection]:
        """A transaction: all of it is kept, or, after an error, nothing."""
        db = self._connection()
        with self._writing:
            try:
                db.execute("BEGIN IMMEDIATE")
                yield db
                db.execute("COMMIT")
            except sqlite3.Error as error:
                raise self._mended(error) from None
            finally:
                if db.in_transaction:
                    db.execute("ROLLBACK")

    def _mended(self, error: sqlite3.Error) -> Exception:
        """The sentence for what a user or a disk did; a mistake of ours stays what it is."""
        if isinstance(error, sqlite3.OperationalError):
            return DiskError(f"cannot use {self.path}: {error}", "make room, or choose another state folder")
        if isinstance(error, sqlite3.DatabaseError) and type(error) is sqlite3.DatabaseError:
            return FormatError(f"{self.path} is damaged: {error}", "restore it, or begin with another state folder")
        return error

    def close(self) -> None:
        for db in self._all.values():
            db.close()


def now() -> int:
    """Seconds since 1970, as OpenAI's objects have them."""
    return int(time.time())


def dump(value: Any) -> str:
    """ASCII: half a surrogate pair, which JSON may hold, is nothing that SQLite takes."""
    return json.dumps(value, separators=(",", ":"))


def add_event(db: sqlite3.Connection, job: str, level: str, kind: str, text: str, data: Any) -> None:
    """A line of a job's history, within a transaction; kind: message or metrics."""
    db.execute("INSERT INTO events (job, created_at, level, type, message, data) VALUES (?, ?, ?, ?, ?, ?)",
               (job, now(), level, kind, text, dump(data)))
