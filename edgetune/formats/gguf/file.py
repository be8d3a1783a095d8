"""One file from open to close: one descriptor, through which all of it is read, mapped and lent to llama.cpp.

A path may name another file tomorrow, a descriptor does not. What is in the file can still be changed by who may write
to it, so whoever relies on it asks `check` before and after.
"""

from __future__ import annotations

import hashlib
import mmap
import os
import stat
import weakref
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from ... import disk
from ...errors import FormatError, MismatchError

_PIECE = 1 << 20  # bytes that are hashed at a time
_AGAIN = "leave the file alone while it is in use, and begin again"


class OpenFile:
    """A regular file, mapped read-only as `mapping`. Raises FormatError for what cannot be opened, and for an empty
    one, with the `least` bytes that it should have; TooMuchError where the system cannot map it now.
    """

    def __init__(self, path: Path, hint: str, least: int = 1) -> None:
        self.path = path
        try:
            self.handle = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)  # a pipe would wait for ever
        except (OSError, ValueError) as error:  # ValueError: a path with a zero byte
            reason = error.strerror if isinstance(error, OSError) else error
            raise FormatError(f"cannot open {str(path)!r}: {reason}", "check the path") from None
        weakref.finalize(self, os.close, self.handle)
        opened = os.fstat(self.handle)
        if not stat.S_ISREG(opened.st_mode):
            raise FormatError(f"{path} is not a regular file", hint)
        if opened.st_size == 0:
            raise FormatError(f"{path} has 0 bytes, it must have at least {least}", hint)
        self._opened = _identity(opened)
        self._changed = opened.st_ctime_ns
        with disk.refusals():
            self.mapping = mmap.mmap(self.handle, 0, access=mmap.ACCESS_READ)

    @property
    def link(self) -> str:
        """A path to this very file, whatever its own path names meanwhile; for this process, while this is open."""
        link = f"/proc/self/fd/{self.handle}"
        return link if os.path.exists(link) else str(self.path)  # noqa: PTH110 - Path would follow it

    def check(self, strictly: bool = False) -> None:
        """FormatError where size or time of modification are no longer those at the opening.

        strictly: nor the time of change, which nobody can set back; it changes with the file's name and rights, too.
        """
        now = os.fstat(self.handle)
        if _identity(now) != self._opened or (strictly and now.st_ctime_ns != self._changed):
            raise FormatError(f"{self.path} was changed after it was opened", _AGAIN)

    def check_path(self) -> None:
        """`check`, and MismatchError where the path names another file now, or none."""
        self.check()
        try:
            named = _identity(self.path.stat())
        except OSError:
            named = None
        if named != self._opened:
            raise MismatchError(f"{self.path} was replaced or removed after it was opened", "open it again")

    def read(self, begin: int, nbytes: int) -> NDArray[np.uint8]:
        """A copy of nbytes from byte `begin` on; see read_into."""
        out = np.empty(nbytes, np.uint8)
        self.read_into(out, begin)
        return out

    def sha256(self) -> str:
        """Digests all bytes, in hexadecimal digits; they are read through the descriptor that is mapped, too."""
        digest = hashlib.sha256()
        size = len(self.mapping)
        for begin in range(0, size, _PIECE):
            digest.update(self.read(begin, min(_PIECE, size - begin)).data)
        return digest.hexdigest()

    def read_into(self, out: NDArray[np.uint8], begin: int) -> None:
        """Fill `out` (1-D) from byte `begin` on. FormatError where the file ends before, or the disk fails.

        Read so, a file takes the memory of `out`. Through the mapping it takes what the kernel maps around a byte that
        is touched: up to 2 MiB, where the page cache holds the file in large folios.
        """
        done = 0
        while done < out.nbytes:
            try:
                got = os.preadv(self.handle, [out[done:].data], begin + done)
            except OSError as error:
                raise FormatError(f"cannot read {self.path}: {error.strerror}", "check the disk") from None
            if got == 0:
                raise FormatError(f"{self.path} ends at byte {begin + done}, it was longer when it was opened", _AGAIN)
            done += got


def _identity(found: os.stat_result) -> tuple[int, int, int, int]:
    return found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns
