"""What disk.py makes survive a power cut, and what it says of a folder that is out of reach."""

import os
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
