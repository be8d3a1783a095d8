"""A kill at any moment, for tests of what is on disk then: a copy of the folder, taken between two changes of it.

A process that is killed loses nothing that the kernel has. So a copy that is made while nothing else writes is what a
kill at this moment leaves, and no clean-up of Python runs in it.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any
from unittest import mock

from edgetune.daemon.state.database import Store

CALLS = ("rename", "replace", "unlink", "remove", "rmdir", "mkdir", "fsync")


class Kill:
    """A kill before the change `number`, from 0 on. is_done: whether that many came."""

    def __init__(self, folder: Path, copy: Path, number: int) -> None:
        self.folder = folder
        self.copy = copy
        self.left = number
        self.is_done = False

    def change(self) -> None:
        self.left -= 1
        if self.left < 0 and not self.is_done:
            self.now()

    def now(self) -> None:
        self.is_done = True
        shutil.copytree(self.folder, self.copy, symlinks=True)


@contextmanager
def killed(folder: Path, copy: Path, number: int) -> Iterator[Kill]:
    """Copies `folder` before the change `number` that is made to any file, or at the end if there are fewer."""
    kill = Kill(folder, copy, number)
    with ExitStack() as patches:
        for name in CALLS:
            patches.enter_context(mock.patch.object(os, name, _counted(getattr(os, name), kill)))
        patches.enter_context(mock.patch.object(Store, "write", _transaction(Store.write, kill)))
        yield kill
    if not kill.is_done:
        kill.now()


@contextmanager
def killed_before_removing(work: Path, out: Path) -> Iterator[None]:
    """Folders in `work` stay as soon as `out` is there, as a kill at that moment leaves them."""
    remove = shutil.rmtree

    def removed(path: str | os.PathLike[str], **options: Any) -> None:
        if not (out.exists() and Path(path).is_relative_to(work)):
            remove(path, **options)

    with mock.patch.object(shutil, "rmtree", removed):
        yield


def _counted(call: Callable[..., Any], kill: Kill) -> Callable[..., Any]:
    def counted(*given: Any, **named: Any) -> Any:
        kill.change()
        return call(*given, **named)

    return counted


def _transaction(write: Callable[..., Any], kill: Kill) -> Callable[..., Any]:
    @contextmanager
    def counted(store: Store) -> Iterator[Any]:
        kill.change()
        with write(store) as db:
            yield db
        kill.change()

    return counted
