"""One allocation, carved from a table of buffers: the plan is the allocation."""

from __future__ import annotations

import contextlib
import math
import mmap
from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np

ALIGN = 64  # bytes; a cache line and the widest vector
VIEWS = 2048  # kept at most


@dataclass(frozen=True)
class Buffer:
    """A row of the table. lifetime: run (whole training), step (one micro-batch), block (reused by every block)."""

    name: str
    shape: tuple[int, ...]
    lifetime: str
    dtype: str = "float32"

    @property
    def nbytes(self) -> int:
        return math.prod(self.shape) * np.dtype(self.dtype).itemsize


def arena_bytes(buffers: Iterable[Buffer]) -> int:
    return sum(-(-b.nbytes // ALIGN) * ALIGN for b in buffers)


class Arena:
    """Holds every buffer of the table in one anonymous mapping; pages cost memory when they are first written."""

    def __init__(self, buffers: Iterable[Buffer]) -> None:
        self.buffers = {b.name: b for b in buffers}
        self.nbytes = arena_bytes(self.buffers.values())
        mapping = mmap.mmap(-1, max(self.nbytes, mmap.PAGESIZE), mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
        with contextlib.suppress(OSError):  # fewer misses in the page tables, where the kernel has huge pages
            mapping.madvise(mmap.MADV_HUGEPAGE)
        self._mapping = mapping
        memory = np.frombuffer(mapping, np.uint8)
        self._flat: dict[str, np.ndarray] = {}
        self._views: dict[tuple[str, tuple[int, ...]], np.ndarray] = {}  # a step asks for the same ones again and again
        offset, self._passing = 0, list[tuple[int, int]]()
        for b in self.buffers.values():
            if b.lifetime != "run":
                begin = -(-offset // mmap.PAGESIZE) * mmap.PAGESIZE
                self._passing.append((begin, (offset + b.nbytes) // mmap.PAGESIZE * mmap.PAGESIZE - begin))
            self._flat[b.name] = memory[offset:offset + b.nbytes].view(b.dtype)
            offset += -(-b.nbytes // ALIGN) * ALIGN

    def release(self) -> None:
        """Between two micro-batches: give back what only these need. The next one gets it again, as zeros."""
        for begin, nbytes in self._passing:
            if nbytes > 0:
                self._mapping.madvise(mmap.MADV_DONTNEED, begin, nbytes)

    def __contains__(self, name: str) -> bool:
        return name in self._flat

    def flat(self, name: str) -> np.ndarray:
        """The whole buffer, 1-D."""
        return self._flat[name]

    def view(self, name: str, *shape: int) -> np.ndarray:
        """The buffer's first prod(shape) elements as a contiguous array of this shape."""
        if (found := self._views.get((name, shape))) is not None:
            return found
        if len(self._views) >= VIEWS:
            self._views.clear()
        found = self._views[name, shape] = self._flat[name][:math.prod(shape)].reshape(shape)
        return found
