"""Records: JSON files, each of one dataclass, that several threads and processes read, change and write.

A lock of a folder excludes all others that change records in it, in this process and in others. It is the kernel's lock
of the folder itself: no file lies around, and whoever is killed lets go.
"""

from __future__ import annotations

import fcntl
import os
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Generic, TypeVar

from .disk import cannot_write, json_text, read_object, replaced, sync
from .errors import DiskError
from .persisted import from_json

T = TypeVar("T")
R = TypeVar("R")
SECONDS = 10.0  # to wait for the lock: a change takes milliseconds
POLL = 0.002  # seconds between two tries
_threads: dict[tuple[int, int], threading.Lock] = {}  # of each folder, by its device and inode


@dataclass(frozen=True)
class Record(Generic[T]):
    """A JSON file of one dataclass, such as FOLDER/NAME.json, whose folder exists.

    kind: the dataclass; its items are checked to any depth (persisted.py). hint: the way out of a damaged file, for the
    error. limit: bytes that the file may have.

        found = record.read()                                        # None: there is no file
        record.change(lambda found: replace(found, state="revoked"))

    What `change` is given is what the file has while nobody else can change it: never act on an earlier `read`. The
    file is replaced whole, and synced before the lock is let go; after a power cut it has the old or the new content.
    While a record is changed, none in the same folder may be changed by the same thread.
    """

    path: Path
    kind: type[T]
    hint: str
    limit: int = 64 * 1024

    def read(self) -> T | None:
        """What the file has; None without a file. Raises FormatError for a damaged one. It needs no lock."""
        found = read_object(self.path, self.hint, self.limit)
        return None if found is None else from_json(self.kind, found, str(self.path))

    def change(self, change: Callable[[T | None], R]) -> R:
        """Writes what `change` makes of the content, and returns it. It is given None without a file; where it returns
        None, the file is removed. Nothing is written where it returns what it was given, or raises.

        Raises the errors of `read`, of `change` and of `exclusive`, and DiskError.
        """
        with exclusive(self.path.parent):
            found = self.read()
            made = change(found)
            if made is None:
                self._remove()
            elif made != found:
                self._write(made)
        return made

    def _write(self, made: Any) -> None:
        with replaced(self.path) as beside:
            beside.write_text(json_text(asdict(made), indent=1) + "\n", encoding="utf-8")

    def _remove(self) -> None:
        try:
            self.path.unlink(missing_ok=True)
            sync(self.path.parent)
        except OSError as error:
            raise cannot_write(self.path, error) from None


@contextmanager
def exclusive(folder: Path, seconds: float = SECONDS) -> Iterator[None]:
    """Holds a folder against all others who ask the same, threads and processes, and waits for them.

    Not for a folder that `disk.alone` holds, which is the same lock. Raises DiskError without the folder, and where
    another has held it for this many seconds.
    """
    end = time.monotonic() + seconds
    try:
        handle = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    except OSError as error:
        raise DiskError(f"{folder} cannot be opened: {error.strerror}", f"make the folder {folder} before") from None
    try:
        about = os.fstat(handle)
        held = _threads.setdefault((about.st_dev, about.st_ino), threading.Lock())  # some file systems have no locks
        if not held.acquire(timeout=seconds):
            raise _is_held(folder, seconds)
        try:
            while not _locked(handle):
                if time.monotonic() > end:
                    raise _is_held(folder, seconds)
                time.sleep(POLL)
            yield
        finally:
            held.release()
    finally:
        os.close(handle)


def _locked(handle: int) -> bool:
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError:
        pass  # of network file systems: then only threads are excluded
    return True


def _is_held(folder: Path, seconds: float) -> DiskError:
    return DiskError(f"another has been writing to {folder} for {seconds:.0f} seconds", "wait for it or stop it")
