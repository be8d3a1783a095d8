"""Records: what several threads and processes read, change and write is never lost, half-written or misread."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import threading
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import partial

import pytest

from edgetune import disk
from edgetune.disk import Record, exclusive
from edgetune.errors import DiskError, FormatError
from edgetune.persisted import from_json


@dataclass(frozen=True)
class Count:
    total: int = 0
    names: list[str] = field(default_factory=list)


def count(record, times):
    for _ in range(times):
        record.change(lambda found: replace(found or Count(), total=(found or Count()).total + 1))


def in_threads(number, record, times):
    threads = [threading.Thread(target=count, args=(record, times)) for _ in range(number)]
    print("begun", flush=True)
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()


@contextmanager
def counter(path, times):
    program = ("import sys, pathlib; from test_record import in_threads, record_in\n"
               f"in_threads(2, record_in(pathlib.Path(sys.argv[1])), {times})")
    with subprocess.Popen([sys.executable, "-c", program, path.parent], stdout=subprocess.PIPE, text=True) as made:
        try:
            assert made.stdout.readline() == "begun\n"
            yield made
        finally:
            if times > 1000:
                made.kill()


def record_in(folder):
    return Record(folder / "count.json", partial(from_json, Count), "remove it, and count again", 4096)


def test_changes_of_threads_and_processes_are_all_there(tmp_path):
    record = record_in(tmp_path)
    with counter(record.path, 50) as first, counter(record.path, 50) as second:
        in_threads(3, record, 50)
    assert (first.returncode, second.returncode) == (0, 0)
    assert record.read() == Count(2 * 2 * 50 + 3 * 50)
    assert [path.name for path in tmp_path.iterdir()] == ["count.json"]  # no lock lies there


def test_a_process_that_is_killed_leaves_a_whole_record_and_no_lock(tmp_path):
    record = record_in(tmp_path)
    for _ in range(3):
        before = (record.read() or Count()).total
        with counter(record.path, 10**9) as other:
            while (record.read() or Count()).total < before + 5:
                assert other.poll() is None
            other.send_signal(signal.SIGKILL)
        found = record.read().total
        assert record.change(lambda found: replace(found, total=found.total + 1)).total == found + 1
    assert [*tmp_path.glob("*.json")] == [tmp_path / "count.json"]


def test_a_change_sees_the_content_and_may_leave_make_or_remove_it(tmp_path):
    record = record_in(tmp_path)
    assert record.read() is None
    assert record.change(lambda found: found) is None
    assert [*tmp_path.iterdir()] == []
    assert record.change(lambda _: Count(1, ["a"])) == Count(1, ["a"])
    assert json.loads((tmp_path / "count.json").read_text()) == {"total": 1, "names": ["a"]}
    wrote = (tmp_path / "count.json").stat()
    assert record.change(lambda found: replace(found)) == Count(1, ["a"])
    assert (tmp_path / "count.json").stat().st_ino == wrote.st_ino  # the same content is not written again
    with pytest.raises(ZeroDivisionError):
        record.change(lambda _: 1 // 0)
    assert record.read() == Count(1, ["a"])
    assert record.change(lambda _: None) is None
    assert [*tmp_path.iterdir()] == []


@pytest.mark.parametrize(("text", "match"), [
    ('{"names": ["a", 1]}', r"names\[1\] is 1, text is expected"), ("[]", "is not a JSON object"), ("{", "is damaged"),
    (" " * 4097, "larger than"), ('{"more": 1}', "has the field 'more'")])
def test_a_damaged_record_is_named_and_left(tmp_path, text, match):
    (tmp_path / "count.json").write_text(text)
    for act in (record_in(tmp_path).read, lambda: record_in(tmp_path).change(lambda _: Count(1))):
        with pytest.raises(FormatError, match=match) as caught:
            act()
        assert "count.json" in str(caught.value)
    assert (tmp_path / "count.json").read_text() == text


def test_a_folder_that_another_holds_or_that_is_not_there_is_named(tmp_path):
    (tmp_path / "here").mkdir()
    (tmp_path / "link").symlink_to("here")
    for held in (exclusive(tmp_path / "here"), disk.alone(tmp_path / "here")):
        with (held, pytest.raises(DiskError, match=r"another has been writing to .*link for 0 seconds"),
              exclusive(tmp_path / "link", 0.01)):
            pass
        with exclusive(tmp_path / "link", 0.01):
            pass
    with pytest.raises(DiskError, match=r"none cannot be opened: No such file or directory; make the folder"):
        record_in(tmp_path / "none").change(lambda _: Count())
