"""Faults of a system, as SQLite's own tests plant them: the n-th call of a kind fails, once or from then on.

    with intercepted():
        prepare()
        with fault("write", 3, lasting=False) as planted:
            action()
    if not planted.hit:  # the action makes fewer calls of this kind: the sweep of n is done

Only calls of edgetune's own modules count, through whichever modules of Python and numpy. SQLite writes by itself: its
statements that write count as writes, a commit as a sync, a connection as an open.
"""

from __future__ import annotations

import builtins
import contextlib
import errno
import io
import mmap
import os
import shutil
import sqlite3
import sys
import threading
import traceback
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any
from unittest import mock

import numpy as np
import pytest

from edgetune.errors import EdgetuneError

KINDS = ("open", "write", "sync", "rename", "mmap", "thread", "allocation")
LARGE = 1 << 12  # bytes of an array from which its allocation counts: a process always has room for smaller ones
THROUGH = {"pathlib", "shutil", "os", "io", "json", "zipfile", "tempfile", "contextlib", "concurrent", "numpy", "csv",
           "threading", "sqlite3", "fileinput", "subprocess"}  # modules that call for their caller
WRITES = ("INSERT", "UPDATE", "DELETE", "REPLACE", "CREATE", "ALTER", "DROP")


class Planted:
    """calls: how many calls of the kind were counted. hit: whether one has failed. path: a part of the path that a call
    must name to count.
    """

    def __init__(self, kind: str, n: int, lasting: bool, path: str) -> None:
        self.kind = kind
        self.n = n
        self.lasting = lasting
        self.path = path
        self.calls = 0
        self.hit = False
        self._lock = threading.Lock()

    def fails(self) -> bool:
        """Counts a call, and says whether it fails."""
        with self._lock:
            self.calls += 1
            fails = self.calls == self.n or (self.lasting and self.calls > self.n)
            self.hit = self.hit or fails
        return fails


_planted: Planted | None = None


@contextmanager
def fault(kind: str, n: int = 1, lasting: bool = True, path: str = "") -> Iterator[Planted]:
    """Within it the n-th call of a kind fails, or all from the n-th on."""
    global _planted
    _planted = Planted(kind, n, lasting, path)
    try:
        yield _planted
    finally:
        _planted = None


@contextmanager
def intercepted() -> Iterator[None]:
    """Within it `fault` sees calls: a file or a connection that was opened before it is not seen."""
    with ExitStack() as patches:
        for module, name, instead in _instead():
            patches.enter_context(mock.patch.object(module, name, instead))
        yield


def _fails(kind: str, path: object = "") -> bool:
    """Counts a call of a kind, and says whether it fails."""
    planted = _planted
    return planted is not None and planted.kind == kind and planted.path in str(path) and planted.fails()


def _is_ours() -> bool:
    """Whether the call that is intercepted comes from edgetune."""
    frame: Any = sys._getframe(2)
    while frame is not None:
        name = frame.f_globals.get("__name__", "")
        if name.startswith("edgetune"):
            return True
        if name != __name__ and name.partition(".")[0] not in THROUGH:
            return False
        frame = frame.f_back
    return False


def _failing(kind: str, real: Callable[..., Any], error: Callable[[Any], BaseException],
             counts: Callable[..., bool] = lambda *_args, **_options: True) -> Callable[..., Any]:
    def call(*args: Any, **options: Any) -> Any:
        if _planted and counts(*args, **options) and _is_ours() and _fails(kind, args[0]):
            raise error(args[0])
        return real(*args, **options)

    return call


def _os_error(number: int) -> Callable[[Any], OSError]:
    """Of the path or the descriptor that a call names first."""
    return lambda named: OSError(number, os.strerror(number), *([] if isinstance(named, int) else [os.fspath(named)]))


class _Raw(io.FileIO):
    """A file whose writes count."""

    def write(self, data: Any) -> int:
        if _fails("write", self.name):
            raise _os_error(errno.ENOSPC)(0)
        return super().write(data)


_open = io.open


def _opened(file: Any, mode: str = "r", buffering: int = -1, encoding: str | None = None, errors: str | None = None,
            newline: str | None = None, closefd: bool = True, opener: Any = None) -> Any:
    if not _is_ours():
        return _open(file, mode, buffering, encoding, errors, newline, closefd, opener)
    if not isinstance(file, int) and _fails("open", file):
        raise _os_error(errno.EMFILE)(file)
    if not set("wax") & set(mode) or "+" in mode:
        return _open(file, mode, buffering, encoding, errors, newline, closefd, opener)
    raw = _Raw(file, mode.replace("b", "").replace("t", ""), closefd, opener)
    if buffering == 0:
        return raw
    whole = io.BufferedWriter(raw)
    return whole if "b" in mode else io.TextIOWrapper(whole, encoding, errors, newline, line_buffering=buffering == 1)


class _Connection(sqlite3.Connection):
    def execute(self, sql: str, *args: Any) -> Any:
        first = (sql.split(None, 1) or [""])[0].upper()
        if first in WRITES and _fails("write"):
            raise sqlite3.OperationalError("database or disk is full")
        if first == "COMMIT" and _fails("sync"):
            raise sqlite3.OperationalError("disk I/O error")
        return super().execute(sql, *args)


_connect = sqlite3.connect


def _connected(*args: Any, **options: Any) -> Any:
    if not _is_ours() or args[0] == ":memory:":
        return _connect(*args, **options)
    if _fails("open", args[0]):
        raise sqlite3.OperationalError("unable to open database file")
    return _connect(*args, **{"factory": _Connection, **options})


class _Mapping(mmap.mmap):
    def __new__(cls, *args: Any, **options: Any) -> Any:
        if _is_ours() and _fails("mmap"):
            raise _os_error(errno.ENOMEM)(0)
        return super().__new__(cls, *args, **options)


def _is_large(shape: Any, dtype: Any = np.float64, *_args: Any, **_options: Any) -> bool:
    return bool(np.prod(shape, dtype=np.int64) * np.dtype(dtype).itemsize >= LARGE)


def _instead() -> Iterator[tuple[Any, str, Any]]:
    """(module, name, what intercepts it)"""
    yield builtins, "open", _opened
    yield io, "open", _opened
    yield os, "open", _failing("open", os.open, _os_error(errno.EMFILE))
    yield sqlite3, "connect", _connected
    yield os, "write", _failing("write", os.write, _os_error(errno.ENOSPC))
    yield os, "sendfile", _failing("write", os.sendfile, _os_error(errno.ENOSPC))
    yield os, "fsync", _failing("sync", os.fsync, _os_error(errno.EIO))
    for name in ("rename", "replace", "mkdir", "symlink", "link"):  # all that gives names
        yield os, name, _failing("rename", getattr(os, name), _os_error(errno.ENOSPC))
    yield mmap, "mmap", _Mapping
    yield threading.Thread, "start", _failing("thread", threading.Thread.start,
                                              lambda _: RuntimeError("can't start new thread"))
    for name in ("empty", "zeros"):
        yield np, name, _failing("allocation", getattr(np, name), lambda _: MemoryError(), _is_large)


# ---- sweeps ----------------------------------------------------------------------------------------------------------


EVERY = int(os.environ.get("FAULTS_EVERY", "1"))  # n that is tried: 1, and each so many after it
MOST = 2000  # calls of a kind of one action: a sweep that goes on has found no end


def sweep(tmp_path, kind, lasting, scenario):
    """Runs a scenario with each n. Returns how many calls of the kind its action makes, and what went wrong, by n."""
    wrong = {}
    for n in range(1, MOST, EVERY):
        folder = tmp_path / str(n)
        folder.mkdir()
        try:
            planted = disturbed(folder, kind, n, lasting, scenario)
            was_hit = planted.hit
        except Exception as error:
            wrong[n] = "".join(traceback.format_exception(error)[-6:])
            was_hit = True
        if not was_hit:
            return planted.calls, wrong
        shutil.rmtree(folder)
    raise AssertionError(f"it makes {MOST} calls or more; {len(wrong)} go wrong: {[*wrong.values()][:1]}")


def disturbed(folder, kind, n, lasting, scenario):
    """What was planted. scenario: a generator function of a folder, whose value is the action; sent the error
    that it raised, or None, it checks what is left, and that the same action succeeds now.
    """
    run = scenario(folder)
    action = next(run)
    raised = None
    with fault(kind, n, lasting) as planted:
        try:
            action()
        except (EdgetuneError, MemoryError) as error:
            raised = error
    assert raised is None or (planted.hit and "\n" not in str(raised))
    with contextlib.suppress(StopIteration):
        run.send(raised)
    return planted


def cases(names, quick=()):
    """A case of each action, kind of call, and length of the refusal; quick: names and kinds that are not slow."""
    for name in names:
        for kind in KINDS:
            for lasting in (False, True):
                is_quick = (name, kind) in quick and not lasting
                yield pytest.param(name, kind, lasting, id=f"{name}-{kind}-{'from then on' if lasting else 'once'}",
                                   marks=[] if is_quick else [pytest.mark.slow, pytest.mark.timeout(14400)])
