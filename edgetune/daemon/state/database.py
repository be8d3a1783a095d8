"""The daemon's database: SQLite in WAL mode, in STATE/state.db.

A committed transaction survives a power cut (synchronous = FULL). Files and adapters are in folders, see shelf.py.
"""

from __future__ import annotations

import json
import logging
import re
import shutil
import sqlite3
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import closing, contextmanager, suppress
from pathlib import Path
from typing import Any, TypeVar

from ... import disk
from ...errors import DiskError, DiskFullError, EdgetuneError, FormatError, LockedError, NotFoundError, UsageError
from .schema import SCHEMA, UPGRADES, VERSION
from .shelf import LOST

log = logging.getLogger("edgetune.daemon")
T = TypeVar("T")
NAME = "state.db"
LEAST_FREE = 4 * 2**20  # bytes of the disk, below which the database may not be able to write
PROBE_SECONDS = 1.0  # between two tries whether a disk that refused accepts a write again
LOCK_SECONDS = 3.0  # that a request waits for another program to let go of the database
LOOK_SECONDS = 0.1  # that health waits for it


class Store:
    """The database in `folder`, made if it does not exist, for any number of threads.

    Raises FormatError for a database that is damaged or of a later edgetune, DiskError where the disk refuses. damaged:
    a sentence for each row that was left out of a list because it cannot be read.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.path = folder / NAME
        self.damaged: dict[tuple[str, Any], str] = {}
        self._idle: list[sqlite3.Connection] = []  # connections that no thread uses now
        self._returned = threading.Condition()
        self._writing = threading.Lock()  # SQLite would make writers poll
        self._refusal: EdgetuneError | None = None  # of the last write, if the disk refused it
        self._probe_at = 0.0
        self._locked: LockedError | None = None  # as long as another program holds the database
        self._locked_at = 0.0  # when a write last gave up to wait for it
        self._must_wipe = _wal(self.path).exists()  # a kill may have come between a deletion and its wipe
        self._must_vacuum = self._must_wipe
        self._files: dict[Path, tuple[int, int]] = {}  # device and inode of the files that connections have open
        try:
            self._open()
        except BaseException:
            self.close()
            raise

    def _open(self) -> None:
        if not self.path.exists() or not self.path.stat().st_size:
            self._set_log_aside()
        with self.write() as db:
            self._prepare(db)
        with self._connection() as db:  # the log exists now, and as long as one connection is open
            db.execute("SELECT count(*) FROM service").fetchone()
        self._files = {path: _identity(path) for path in (self.path, _wal(self.path))}
        if self._must_wipe:
            self.wipe()

    def _set_log_aside(self) -> None:
        """Sets aside the log of a lost database: it may hold the newest writes, and SQLite would remove it."""
        if (wal := _wal(self.path)).exists() and wal.stat().st_size:
            disk.private_folder(self.folder / LOST)
            target = self.folder / LOST / f"{wal.name}.{now()}"
            wal.rename(target)
            log.warning("%s is lost, its log is set aside as %s", self.path, target)

    def _prepare(self, db: sqlite3.Connection) -> None:
        """Makes the tables, or upgrades those of an earlier edgetune. Raises FormatError for anything else."""
        (written,) = db.execute("PRAGMA user_version").fetchone()
        version = written
        if version == 0 and not _columns(db):
            _execute_all(db, SCHEMA)
            version = VERSION
        elif version == 0:
            raise FormatError(f"{self.path} has tables, but says no version",
                              "restore it, or begin with another state folder")
        try:
            while version in UPGRADES:
                _execute_all(db, UPGRADES[version])
                version += 1
        except sqlite3.OperationalError as error:
            if isinstance(known := self._as_known(error), EdgetuneError):
                raise known from None
            raise FormatError(f"{self.path} is not what its version {version} says: {error}",
                              "restore it, or begin with another state folder") from None
        if version != VERSION:
            raise FormatError(f"{self.path} has the version {version}, this edgetune knows {VERSION}",
                              "use the edgetune that wrote it, or another state folder")
        if written != VERSION:
            db.execute(f"PRAGMA user_version = {VERSION}")
        with closing(sqlite3.connect(":memory:")) as empty:
            _execute_all(empty, SCHEMA)
            wanted = _columns(empty)
        if missing := wanted - _columns(db):
            raise FormatError(f"{self.path} lacks {' '.join(min(missing))}", "restore it, or begin with another state "
                              "folder")

    # ---- connections --------------------------------------------------------------------------------------------

    @contextmanager
    def _connection(self) -> Iterator[sqlite3.Connection]:
        """Yields a connection that no other thread uses meanwhile."""
        with self._returned:
            if self.lost():  # a new connection would open another file: wait for one that has the old file
                self._returned.wait_for(lambda: self._idle, timeout=10)
            db = self._idle.pop() if self._idle else self._connect()
        try:
            yield db
        finally:
            with self._returned:
                self._idle.append(db)
                self._returned.notify()

    def _connect(self) -> sqlite3.Connection:
        if lost := self.lost():
            raise lost
        try:
            db = sqlite3.connect(self.path, isolation_level=None, timeout=LOCK_SECONDS, check_same_thread=False)
        except sqlite3.Error as error:
            raise self._as_known(error) from None
        try:
            db.row_factory = sqlite3.Row
            # bytes that are not UTF-8 become half surrogate pairs, which `_sound` finds
            db.text_factory = lambda raw: raw.decode("utf-8", "surrogateescape")
            for pragma in ("journal_mode = WAL", "synchronous = FULL", "foreign_keys = ON",
                           "secure_delete = ON"):
                db.execute(f"PRAGMA {pragma}")
        except (sqlite3.Error, UnicodeDecodeError) as error:
            db.close()
            raise self._as_known(error) from None
        return db

    def lost(self) -> DiskError | None:
        """Returns the error, if the database was removed or replaced since it was opened: writes would be lost."""
        for path, was in self._files.items():
            if _identity(path) != was:
                return DiskError(f"{path} was removed or replaced while the daemon runs, nothing new is kept",
                                 "stop the daemon, put it back, and start again")
        return None

    # ---- reading and writing ------------------------------------------------------------------------------------

    def read(self, sql: str, *values: Any) -> list[sqlite3.Row]:
        with self._connection() as db:
            try:
                return db.execute(sql, values).fetchall()
            except (sqlite3.Error, UnicodeDecodeError) as error:
                raise self._as_known(error) from None
            except UnicodeEncodeError:
                raise UsageError("a value holds half a surrogate pair, which is no character",
                                 "send whole ones") from None

    @contextmanager
    def write(self) -> Iterator[sqlite3.Connection]:
        """Opens a transaction: all of it is kept, or, after an error, nothing. Raises LockedError where another program
        holds the database for LOCK_SECONDS.
        """
        if lost := self.lost():
            raise lost
        since = time.monotonic()
        with self._connection() as db, self._writing:
            if self._locked and self._locked_at > since:  # another thread waited meanwhile, in vain
                raise self._locked from None
            try:
                self._begin(db, LOCK_SECONDS)
                yield db
                db.execute("COMMIT")
                if self._must_wipe and self._files:
                    self._wipe(db, 0.0)
            except (sqlite3.Error, UnicodeDecodeError) as error:
                known = self._as_known(error)
                self._refusal = known if isinstance(known, DiskError) else None
                self._must_wipe |= isinstance(known, DiskError)  # the log may hold a part of what is not kept
                raise known from None
            finally:
                if db.in_transaction:
                    db.execute("ROLLBACK")
        if not self._must_wipe:
            self._refusal = None
        if lost := self.lost():
            raise lost

    def _begin(self, db: sqlite3.Connection, seconds: float) -> None:
        """Begins a write. `_locked` says whether it waits for another program. Raises LockedError after `seconds`."""
        try:
            for wait in (0.0, seconds):
                db.execute(f"PRAGMA busy_timeout = {wait * 1000:.0f}")
                try:
                    db.execute("BEGIN IMMEDIATE")
                    self._locked = None
                    return
                except sqlite3.OperationalError as error:
                    known = self._as_known(error)
                    if not isinstance(known, LockedError):
                        raise
                    self._locked = known
            self._locked_at = time.monotonic()
            raise known
        finally:
            db.execute(f"PRAGMA busy_timeout = {LOCK_SECONDS * 1000:.0f}")

    def holds_feedback(self) -> bool:
        """Returns whether any feedback is kept, or the digest of a question that once had some."""
        return bool(self.read("SELECT 1 FROM feedback UNION ALL SELECT 1 FROM questions LIMIT 1"))

    def wipe(self) -> None:
        """Removes deleted rows from the log of SQLite too, where they would stay until it is overwritten, and from its
        pages: secure_delete leaves what a row was before SQLite moved it. If the disk refuses now, or another program
        reads the database, it happens with a later write; the rows are deleted all the same.
        """
        with self._connection() as db, self._writing:
            self._must_vacuum = True
            self._wipe(db)

    def _wipe(self, db: sqlite3.Connection, seconds: float = LOCK_SECONDS) -> None:
        """Waits so long for readers."""
        db.execute(f"PRAGMA busy_timeout = {seconds * 1000:.0f}")
        try:
            if self._must_vacuum:
                db.execute("VACUUM")
                self._must_vacuum = False  # not again while somebody reads: each makes the log as much longer
            (is_read, _, _) = db.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchone()
            self._must_wipe = bool(is_read)
        except sqlite3.Error as error:
            self._must_wipe = True
            log.warning("%s is not emptied yet: %s", _wal(self.path), error)
            known = self._as_known(error)
            self._refusal = known if isinstance(known, DiskError) else None  # so health tries again
        finally:
            db.execute(f"PRAGMA busy_timeout = {LOCK_SECONDS * 1000:.0f}")

    def _as_known(self, error: sqlite3.Error | UnicodeDecodeError) -> Exception:
        """Returns the EdgetuneError for an error of a user or a disk; a programming error is returned unchanged.
        SQLite's message identifies it, as Python 3.10 gives no codes. One with a damaged schema may not be UTF-8.
        """
        message = str(error) if isinstance(error, sqlite3.Error) else "malformed schema"
        if "disk is full" in message:
            return DiskFullError(f"cannot write {self.path}: {message}", "make room, or choose another state folder")
        if "readonly" in message or "disk I/O" in message or "unable to open" in message:
            return DiskError(f"cannot use {self.path}: {message}",
                             "look at the disk and the folder's rights, or choose another state folder")
        if "locked" in message:
            return LockedError(f"another program holds {self.path}, nothing is kept meanwhile: {message}",
                               "try again, or end that program")
        if "malformed" in message or "not a database" in message:
            return FormatError(f"{self.path} is damaged: {message}", "restore it, or begin with another state folder")
        return error

    # ---- rows as objects ----------------------------------------------------------------------------------------

    def objects(self, table: str, rows: Iterable[sqlite3.Row], read: Callable[[dict[str, Any]], T],
                whole: bool = True) -> list[T]:
        """Returns the objects that `read` makes of each row's columns. A row that it cannot read is left out, and named
        in `damaged`, until the `whole` of it is read without error.
        """
        found: list[T] = []
        for row in rows:
            key = (table, row[0])
            try:
                found.append(read(_sound(row)))
            except (FormatError, ValueError, TypeError, KeyError, RecursionError) as error:
                if key not in self.damaged:
                    self.damaged[key] = f"a row of {table} in {NAME} is damaged and left out ({row[0]!r:.60}): {error}"
                    log.warning("%s", self.damaged[key])
            else:
                if whole:
                    self.damaged.pop(key, None)
        return found

    def newest(self, table: str, read: Callable[[dict[str, Any]], T], below: int, limit: int, where: str = "1",
               *values: Any, columns: str = "*") -> list[T]:
        """Returns objects of readable rows below a rowid, the newest first, at most `limit`. columns: those that `read`
        needs; the first of them names the row in `damaged`.
        """
        found: list[T] = []
        while len(found) < limit:
            rows = self.read(f"SELECT {columns}, rowid AS place FROM {table} WHERE rowid < ? AND {where} "
                             "ORDER BY rowid DESC LIMIT ?", below, *values, limit - len(found))
            if not rows:
                break
            below = rows[-1]["place"]
            found += self.objects(table, rows, read, whole=columns == "*")
        return found

    def one(self, table: str, rows: list[sqlite3.Row], read: Callable[[dict[str, Any]], T],
            unknown: NotFoundError) -> T:
        """Returns the object of the row. Raises `unknown` without a row, NotFoundError for a damaged one."""
        if not rows:
            raise unknown
        if found := self.objects(table, rows, read):
            return found[0]
        raise NotFoundError(self.damaged[table, rows[0][0]], "delete it, or restore the database")

    def forget(self, table: str, id: str) -> None:
        """Removes a deleted row from `damaged`."""
        self.damaged.pop((table, id), None)

    def before(self, table: str, id: str | None) -> int:
        """Returns the rowid below which a list that begins after the object `id` starts. Raises NotFoundError."""
        if id is None:
            return 2**62
        if found := self.read(f"SELECT rowid FROM {table} WHERE id = ?", id):
            return int(found[0][0])
        raise NotFoundError(f"there is no {id!r:.80} after which to continue",
                            "give the id of the last one that you got")

    # ---- health -------------------------------------------------------------------------------------------------

    def reasons(self) -> list[str]:
        """Returns the reasons why the daemon is degraded, a sentence each."""
        found = list(self.damaged.values())
        if lost := self.lost():
            found.append(str(lost))
        elif (free := shutil.disk_usage(self.folder).free) < LEAST_FREE:
            found.append(f"the disk is full: {self.folder} has {free // 2**10} KiB free; make room")
        elif refusal := self._still_refused() or self._still_locked():
            found.append(str(refusal))
        return found

    def _still_locked(self) -> EdgetuneError | None:
        """Returns the error of a write that would begin now, if another program holds the database."""
        if self._writing.acquire(blocking=False):  # else a write has looked just now
            try:
                with suppress(EdgetuneError, sqlite3.Error), self._connection() as db:  # a write says more
                    self._begin(db, LOOK_SECONDS)
                    db.execute("ROLLBACK")
            finally:
                self._writing.release()
        return self._locked

    def _still_refused(self) -> EdgetuneError | None:
        """Returns the last write's error, unless the disk accepts a write now."""
        if self._refusal and time.monotonic() >= self._probe_at:
            self._probe_at = time.monotonic() + PROBE_SECONDS
            with suppress(EdgetuneError), self.write() as db:
                db.execute(f"PRAGMA user_version = {VERSION}")
        return self._refusal

    def close(self) -> None:
        with self._returned:
            while self._idle:
                self._idle.pop().close()


def _wal(path: Path) -> Path:
    return path.with_name(f"{path.name}-wal")


def _identity(path: Path) -> tuple[int, int]:
    try:
        found = path.stat()
    except OSError:
        return 0, 0
    return found.st_dev, found.st_ino


def _execute_all(db: sqlite3.Connection, statements: str) -> None:
    """Executes statements within the open transaction, which executescript would end."""
    for statement in re.sub("--.*", "", statements).split(";"):
        db.execute(statement)


def _columns(db: sqlite3.Connection) -> set[tuple[str, str]]:
    """Returns (table, column) of all tables."""
    tables = [row[0] for row in db.execute("SELECT name FROM sqlite_master WHERE type = 'table'").fetchall()]
    return {(table, row[1]) for table in tables for row in db.execute(f"PRAGMA table_info({table})").fetchall()}


def _sound(row: sqlite3.Row) -> dict[str, Any]:
    """Returns the columns of a row. Raises FormatError for text that is not UTF-8."""
    columns = dict(row)
    columns.pop("place", None)
    for name, value in columns.items():
        if isinstance(value, str) and not value.isascii():
            try:
                value.encode()
            except UnicodeEncodeError:
                raise FormatError(f"{name} is not UTF-8") from None
    return columns


def now() -> int:
    """Returns seconds since 1970, as OpenAI's objects have them."""
    return int(time.time())


def dump(value: Any) -> str:
    """Returns ASCII JSON: SQLite does not accept half a surrogate pair, which JSON may hold."""
    return json.dumps(value, separators=(",", ":"))


def add_event(db: sqlite3.Connection, job: str, level: str, kind: str, text: str, data: Any) -> None:
    """Adds a line to a job's history, within a transaction; kind: message or metrics."""
    db.execute("INSERT INTO events (job, created_at, level, type, message, data) VALUES (?, ?, ?, ?, ?, ?)",
               (job, now(), level, kind, text, dump(data)))
