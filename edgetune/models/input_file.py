"""The inputs of blocks in a file, where rows are so long that memory does not do for all of them.

Forward writes the input of each trained block, backward reads them from the last to the first; one at a time is in
memory. The file has no name, so nothing is left of it, whatever happens.
"""

from __future__ import annotations

import os
import tempfile
import weakref
from collections.abc import Callable
from pathlib import Path

import numpy as np

from ..disk import cache_folder, cannot_write
from ..errors import DiskError


class InputFile:
    """Room for `count` arrays of up to `nbytes` bytes. Raises DiskError where the disk has no room for them."""

    def __init__(self, count: int, nbytes: int) -> None:
        self._nbytes = nbytes
        folder = cache_folder()
        try:
            folder.mkdir(parents=True, exist_ok=True)
            self._file, name = tempfile.mkstemp(dir=folder)
            weakref.finalize(self, os.close, self._file)
            Path(name).unlink()
            os.posix_fallocate(self._file, 0, count * nbytes)
        except OSError as error:
            raise cannot_write(folder / "inputs", error) from None

    def write(self, place: int, array: np.ndarray) -> None:
        """Raises DiskError."""
        self._move(os.pwrite, place, array)

    def read(self, place: int, array: np.ndarray) -> None:
        """Sets an array to what was written of one of its size; those before it are read ahead. Raises DiskError."""
        self._move(lambda file, part, at: os.preadv(file, [part], at), place, array)
        if place:
            os.posix_fadvise(self._file, (place - 1) * self._nbytes, array.nbytes, os.POSIX_FADV_WILLNEED)

    def _move(self, move: Callable[[int, memoryview, int], int], place: int, array: np.ndarray) -> None:
        left = array.reshape(-1).data.cast("B")
        at = place * self._nbytes
        while left:
            try:
                done = move(self._file, left, at)
            except OSError as error:
                raise cannot_write(cache_folder() / "inputs", error) from None
            if not done:
                raise DiskError("the file of the inputs of blocks has ended", "train with --recompute block")
            left = left[done:]
            at += done
