"""The database: transactions that are whole, errors in one sentence, many threads."""

from __future__ import annotations

import sqlite3
import threading
from pathlib import Path

import pytest

from edgetune.daemon.state.database import VERSION, Store, dump, now
from edgetune.errors import FormatError, NotFoundError, TooMuchError, UsageError

SERVICE = "INSERT INTO service (at, adapter, cause) VALUES (?, ?, ?)"


def test_a_transaction_is_kept_whole_or_not_at_all(tmp_path: Path) -> None:
    store = Store(tmp_path)
    with store.write() as db:
        db.execute(SERVICE, (now(), None, "a"))

    def half(cause: str | None) -> None:
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


def test_it_is_in_wal_mode_and_syncs(tmp_path: Path) -> None:
    store = Store(tmp_path)
    assert store.read("PRAGMA journal_mode")[0][0] == "wal"
    assert store.read("PRAGMA synchronous")[0][0] == 2
    assert store.read("PRAGMA foreign_keys")[0][0] == 1


def test_many_threads_write(tmp_path: Path) -> None:
    store = Store(tmp_path)
    errors = []

    def work(thread: int) -> None:
        try:
            for i in range(20):
                with store.write() as db:
                    db.execute(SERVICE, (now(), None, f"{thread} {i}"))
                assert store.read("SELECT 1 FROM service WHERE cause = ?", f"{thread} {i}")
        except Exception as error:
            errors.append(error)

    threads = [threading.Thread(target=work, args=(i,)) for i in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not errors
    assert store.read("SELECT count(DISTINCT cause) FROM service")[0][0] == 160


def test_threads_that_ended_leave_no_connection(tmp_path: Path) -> None:
    store = Store(tmp_path)
    for _ in range(20):
        thread = threading.Thread(target=store.read, args=("SELECT 1",))
        thread.start()
        thread.join()
    opened = [path.readlink() for path in Path("/proc/self/fd").iterdir() if path.is_symlink()]
    assert sum(path == tmp_path / "state.db" for path in opened) < 8  # SQLite itself closes some late
    store.close()


def test_a_database_that_is_damaged_or_newer(tmp_path: Path) -> None:
    (tmp_path / "state.db").write_bytes(b"no database at all, " * 100)
    with pytest.raises(FormatError, match=r"state\.db is damaged: file is not a database; restore it") as caught:
        Store(tmp_path)
    assert "\n" not in str(caught.value)
    (tmp_path / "state.db").unlink()
    store = Store(tmp_path)
    with store.write() as db:
        db.execute(f"PRAGMA user_version = {VERSION + 1}")
    store.close()
    with pytest.raises(FormatError, match=f"has the version {VERSION + 1}, this edgetune knows {VERSION}"):
        Store(tmp_path)


def test_a_list_goes_on_after_what_is_there(tmp_path: Path) -> None:
    with pytest.raises(NotFoundError, match="there is no 'file-1' after which to continue"):
        Store(tmp_path).before("files", "file-1")


def test_what_is_dumped_can_be_stored(tmp_path: Path) -> None:
    store = Store(tmp_path)
    with store.write() as db:
        db.execute(SERVICE, (now(), None, dump({"a": "\ud800 é \0"})))
    assert store.read("SELECT cause FROM service")[0][0] == r'{"a":"\ud800 \u00e9 \u0000"}'


def test_a_mistake_of_ours_is_not_told_as_a_full_disk(tmp_path: Path) -> None:
    store = Store(tmp_path)
    with pytest.raises(sqlite3.OperationalError, match="no such table"):
        store.read("SELECT * FROM elsewhere")
    with pytest.raises(sqlite3.OperationalError, match="syntax error"), store.write() as db:
        db.execute("INSERT ONTO files")
    assert store.reasons() == []


@pytest.mark.parametrize(("sql", "match"), [
    ("PRAGMA user_version = 0", "has tables, but says no version"),
    ("DROP TABLE feedback", "lacks feedback "),
    ("ALTER TABLE files DROP COLUMN sha256", "lacks files sha256"),
    ("PRAGMA user_version = -1", "has the version -1")])
def test_a_database_that_is_not_what_it_says(tmp_path: Path, sql: str, match: str) -> None:
    store = Store(tmp_path)
    with store.write() as db:
        db.execute(sql)
    store.close()
    with pytest.raises(FormatError, match=match) as caught:
        Store(tmp_path)
    assert "room" not in str(caught.value)
    assert "\n" not in str(caught.value)


def test_another_program_that_holds_it_is_told_of(tmp_path: Path) -> None:
    store = Store(tmp_path)
    store.read("PRAGMA busy_timeout = 50")
    other = sqlite3.connect(tmp_path / "state.db", isolation_level=None)
    other.execute("BEGIN IMMEDIATE")
    with pytest.raises(TooMuchError, match="another program holds"), store.write():
        pass
    other.close()
    with store.write() as db:
        db.execute(SERVICE, (now(), None, "x"))


def test_text_that_is_no_text_is_a_sentence(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="half a surrogate pair"):
        Store(tmp_path).read("SELECT * FROM jobs WHERE id = ?", "\ud800")
