"""The database: transactions that are whole, errors in one sentence, many threads."""

import sqlite3
import threading
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from pathlib import Path

import pytest
from services import as_version_5, open_service

from edgetune.daemon.state import database
from edgetune.daemon.state.database import NAME, VERSION, Store, dump, now
from edgetune.errors import FormatError, LockedError, NotFoundError, UsageError

SERVICE = "INSERT INTO service (at, adapter, cause) VALUES (?, ?, ?)"


def test_a_transaction_is_kept_whole_or_not_at_all(tmp_path):
    store = Store(tmp_path)
    for name, value in (("journal_mode", "wal"), ("synchronous", 2), ("foreign_keys", 1)):
        assert store.read(f"PRAGMA {name}")[0][0] == value
    with store.write() as db:
        db.execute(SERVICE, (now(), None, "a"))

    def half(cause):
        with store.write() as db:
            db.execute(SERVICE, (now(), None, "b"))
            db.execute(SERVICE, (now(), None, cause))
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        half("c")
    with pytest.raises(sqlite3.IntegrityError):
        half(None)
    with store.write() as db:  # it is still usable
        db.execute(SERVICE, (now(), None, "d"))
    store.close()
    assert [row["cause"] for row in Store(tmp_path).read("SELECT cause FROM service ORDER BY seq")] == ["a", "d"]


def test_many_threads_write_and_leave_no_connection(tmp_path):
    store = Store(tmp_path)

    def work(thread):
        for i in range(10):
            with store.write() as db:
                db.execute(SERVICE, (now(), None, f"{thread} {i}"))
            assert store.read("SELECT 1 FROM service WHERE cause = ?", f"{thread} {i}")

    for _ in range(5):
        with ThreadPoolExecutor(8) as pool:
            list(pool.map(work, range(8)))
    assert store.read("SELECT count(*) FROM service")[0][0] == 400
    opened = [path.readlink() for path in Path("/proc/self/fd").iterdir() if path.is_symlink()]
    assert sum(path == tmp_path / "state.db" for path in opened) < 16  # of 41; SQLite itself closes some late
    store.close()


def test_what_cannot_be_read_or_stored_is_a_sentence(tmp_path):
    """A mistake of ours is not taken for a full disk, and another program that holds the database is named."""
    store = Store(tmp_path)
    with pytest.raises(NotFoundError, match="there is no 'file-1' after which to continue"):
        store.before("files", "file-1")
    with pytest.raises(UsageError, match="half a surrogate pair"):
        store.read("SELECT * FROM jobs WHERE id = ?", "\ud800")
    with store.write() as db:
        db.execute(SERVICE, (now(), None, dump({"a": "\ud800 é \0"})))
    assert store.read("SELECT cause FROM service")[0][0] == r'{"a":"\ud800 \u00e9 \u0000"}'
    with pytest.raises(sqlite3.OperationalError, match="no such table"):
        store.read("SELECT * FROM elsewhere")
    with pytest.raises(sqlite3.OperationalError, match="syntax error"), store.write() as db:
        db.execute("INSERT ONTO files")
    assert store.reasons() == []


def test_another_program_that_holds_the_database(tmp_path, monkeypatch):
    """Writes that wait at the same time give up together; health says it as long as it is so, and no longer."""
    monkeypatch.setattr(database, "LOCK_SECONDS", 0.5)
    store = Store(tmp_path)
    begun = []
    begin = store._begin
    monkeypatch.setattr(store, "_begin", lambda *given: (begun.append(given), begin(*given)))
    other = sqlite3.connect(tmp_path / "state.db", isolation_level=None)
    other.execute("BEGIN EXCLUSIVE")
    [reason] = store.reasons()  # before anybody has written
    assert "another program holds" in reason
    begun.clear()
    start = threading.Barrier(8)

    def write(_):
        start.wait()
        with pytest.raises(LockedError, match=r"another program holds .*try again"), store.write():
            pass

    with ThreadPoolExecutor(8) as threads:
        list(threads.map(write, range(8)))
    assert len(begun) < 8
    assert store.read("SELECT count(*) FROM service")[0][0] == 0
    assert store.reasons() == [reason]
    other.close()
    assert store.reasons() == []
    with store.write() as db:
        db.execute(SERVICE, (now(), None, "x"))


@pytest.mark.parametrize(("sql", "match"), [
    ("", r"state\.db is damaged: file is not a database; restore it"),
    (f"PRAGMA user_version = {VERSION + 1}", f"has the version {VERSION + 1}, this edgetune knows {VERSION}"),
    ("PRAGMA user_version = 0", "has tables, but says no version"),
    ("DROP TABLE feedback", "lacks feedback "),
    ("ALTER TABLE files DROP COLUMN sha256", "lacks files sha256"),
    ("PRAGMA user_version = -1", "has the version -1")])
def test_a_database_that_is_not_what_it_says(tmp_path, sql, match):
    if sql:
        store = Store(tmp_path)
        with store.write() as db:
            db.execute(sql)
        store.close()
    else:
        (tmp_path / "state.db").write_bytes(b"no database at all, " * 100)
    with pytest.raises(FormatError, match=match) as caught:
        Store(tmp_path)
    assert "room" not in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_state_of_version_5_opens(folder):
    """With all that it held."""
    with closing(sqlite3.connect(folder / "state" / NAME)) as db:
        as_version_5(db)
        db.execute("PRAGMA user_version = 5")
        db.commit()
        tables = ("jobs", "adapters", "feedback")
        before = [db.execute(f"SELECT count(*) FROM {table}").fetchone()[0] for table in tables]
    with open_service(folder) as service:
        assert [len(service.jobs.list()), len(service.adapters.list()), len(service.feedback.list())] == before
        assert all(job.rounds is None for job in service.jobs.list())
    with closing(sqlite3.connect(folder / "state" / NAME)) as db:
        assert db.execute("PRAGMA user_version").fetchone() == (VERSION,) == (12,)
