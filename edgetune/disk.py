"""Files and folders that appear whole under their name or not at all: written beside, synced, renamed."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from .errors import EdgetuneError, UsageError


@contextmanager
def replaced(path: Path) -> Iterator[Path]:
    """A name beside `path` to write to: synced and renamed to `path` at the end, removed after an error."""
    beside = path.with_name(f"{path.name}.tmp")
    try:
        yield beside
        _sync(beside)
        beside.replace(path)
        _sync(path.parent)
    except OSError as error:
        raise _cannot_write(path, error) from None
    finally:
        beside.unlink(missing_ok=True)


@contextmanager
def new_folder(path: Path) -> Iterator[Path]:
    """A folder beside `path` to fill: renamed to `path` at the end, removed after an error. UsageError if it exists."""
    refuse_existing(path)
    beside = path.with_name(f"{path.name}.{os.getpid()}.tmp")
    try:
        beside.mkdir(parents=True)
        yield beside
        for file in (*beside.iterdir(), beside):
            _sync(file)
        beside.rename(path)
        _sync(path.parent)
    except OSError as error:
        raise _cannot_write(path, error) from None
    finally:
        shutil.rmtree(beside, ignore_errors=True)


def refuse_existing(path: Path) -> None:
    if os.path.lexists(path):
        raise UsageError(f"the output {path} exists", "name another or remove it")


def _cannot_write(path: Path, error: OSError) -> EdgetuneError:
    free = shutil.disk_usage(path.parent).free // 2**20 if path.parent.is_dir() else 0
    return EdgetuneError(f"cannot write {path}: {error.strerror or error} ({free} MiB are free there)",
                         "make room or choose another place")


def _sync(path: Path) -> None:
    """Make a file's bytes, or the names in a folder, survive a power cut."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
