"""One allocation, carved from a table of buffers: the plan is the allocation.

Buffers that are never alive at the same time begin at the same place: those of blocks and those of the head.
"""

from __future__ import annotations

import math
import mmap
from collections.abc import Callable, Iterable
from dataclasses import dataclass

import numpy as np

from .base import Memory

ALIGN = 64  # bytes; a cache line and the widest vector
VIEWS = 2048  # kept at most


@dataclass(frozen=True)
class Buffer:
    """A row of the table. lifetime: run (whole training), step (one micro-batch, through head and blocks), block
    (within a block's pass), head (within the head's pass).
    """

    name: str
    shape: tuple[int, ...]
    lifetime: str
    dtype: str = "float32"

    @property
    def nbytes(self) -> int:
        return math.prod(self.shape) * np.dtype(self.dtype).itemsize


@dataclass(frozen=True)
class Layout:
    """Where each buffer begins. What lies from `passing` on holds nothing between two steps."""

    offsets: dict[str, int]
    passing: int
    nbytes: int


def lay_out(buffers: Iterable[Buffer]) -> Layout:
    """First what lives as long as the run, on pages of its own; then a step's; then blocks' and head's at one place."""
    table = list(buffers)
    offsets = {}

    def place(lifetime: str, offset: int) -> int:
        for b in table:
            if b.lifetime == lifetime:
                offsets[b.name] = offset
                offset += -(-b.nbytes // ALIGN) * ALIGN
        return offset

    passing = -(-place("run", 0) // mmap.PAGESIZE) * mmap.PAGESIZE
    shared = place("step", passing)
    return Layout(offsets, passing, max(place("block", shared), place("head", shared)))


def arena_bytes(buffers: Iterable[Buffer]) -> int:
    return lay_out(buffers).nbytes


class Arena:
    """Holds every buffer of the table in one allocation of the backend."""

    def __init__(self, buffers: Iterable[Buffer], allocate: Callable[[int], Memory]) -> None:
        self.buffers = {b.name: b for b in buffers}
        layout = lay_out(self.buffers.values())
        self.nbytes = layout.nbytes
        self._passing = layout.passing
        self._memory = allocate(self.nbytes)
        array = self._memory.array
        self._flat = {b.name: array[layout.offsets[b.name]:layout.offsets[b.name] + b.nbytes].view(b.dtype)
                      for b in self.buffers.values()}
        self._views: dict[tuple[str, tuple[int, ...]], np.ndarray] = {}  # a step asks for the same ones again and again

    def release(self) -> None:
        """Between two micro-batches: give back what only these need. The next one gets it again, as zeros."""
        if self._passing < self.nbytes:
            self._memory.discard(self._passing)

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
