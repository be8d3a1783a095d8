"""What disk.py makes survive a power cut, and what it says of a folder that is out of reach."""

import errno
import os
import subprocess
import sys
from pathlib import Path

import pytest

from edgetune import disk
from edgetune.errors import DiskError


def test_a_folder_is_synced_with_all_that_is_in_it(tmp_path, monkeypatch):
    """An adapter in a folder of its own too, each before the names that point to it."""
    for name in ("train.jsonl", "start/adapter.gguf", "start/deep/run.json"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(name)
    synced: list[Path] = []
    monkeypatch.setattr(os, "fsync", lambda handle: synced.append(Path(f"/proc/self/fd/{handle}").readlink()))
    disk.sync_whole(tmp_path)
    assert {*synced} == {tmp_path, *tmp_path.rglob("*")}
    assert all(synced.index(path) < synced.index(path.parent) for path in synced[:-1])


def test_room_in_a_folder_that_is_gone_is_an_error_of_the_disk(tmp_path):
    with pytest.raises(DiskError, match="gone"):
        disk.require_room(tmp_path / "gone", 1)


def begin_folder(path):
    """A process that writes a new folder until its standard input ends."""
    code = ("import sys; from pathlib import Path; from edgetune.disk import new_folder\n"
            "with new_folder(Path(sys.argv[1])) as folder:\n"
            "    (folder / 'part').write_text('half'); print(folder, flush=True); sys.stdin.read()")
    process = subprocess.Popen([sys.executable, "-c", code, str(path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE,
                               text=True)
    return process, Path(process.stdout.readline().strip())


def test_what_a_killed_process_left_is_removed_by_the_next_that_writes_there(tmp_path):
    path = tmp_path / "made[1]"  # no pattern
    process, left = begin_folder(path)
    process.kill()
    process.communicate()
    own = tmp_path / f"made[1].{os.getpid()}.tmp"  # of a process that had this number before
    others = [tmp_path / name for name in ("made1.1.tmp", "made[1].part.1.tmp", "made[1].1.tmp.kept", "made[1].x.tmp")]
    for folder in (own, *others):
        folder.mkdir()
    assert (left / "part").exists()
    with disk.new_folder(path) as beside:
        (beside / "part").write_text("whole")
        with pytest.raises(DiskError, match="File exists"), disk.new_folder(path):
            pass  # another thread that writes the same one leaves it alone
        assert (beside / "part").exists()
    assert {*tmp_path.iterdir()} == {path, *others}
    assert (path / "part").read_text() == "whole"


def fill_disk(path, beside):
    """Begins the same folder, and fails."""
    with disk.new_folder(path):
        assert (beside / "part").exists()
        raise OSError(errno.ENOSPC, "No space left on device")


def test_what_another_process_writes_stays(tmp_path):
    path = tmp_path / "made"
    process, beside = begin_folder(path)
    with pytest.raises(DiskError, match="No space"):
        fill_disk(path, beside)
    process.communicate("")
    assert [one.name for one in tmp_path.iterdir()] == ["made"]


def test_two_folders_change_places(tmp_path):
    for name in "ab":
        (tmp_path / name).mkdir()
        (tmp_path / name / "content").write_text(name)
    if not disk.exchange(tmp_path / "a", tmp_path / "b"):
        pytest.skip("this file system cannot")
    assert [(tmp_path / name / "content").read_text() for name in "ab"] == ["b", "a"]
    with pytest.raises(FileNotFoundError):
        disk.exchange(tmp_path / "a", tmp_path / "c")
