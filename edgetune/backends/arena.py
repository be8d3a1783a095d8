"""One allocation, divided by a table of buffers: the plan is the allocation.

Buffers that are never in use at the same time share memory: those of blocks and those of the head.
"""

from __future__ import annotations

import math
import mmap
from collections.abc import Callable, Iterable
from dataclasses import dataclass

import numpy as np

from .base import Memory

ALIGN = 64  # bytes; a cache line and the widest vector
VIEWS = 2048  # the most that are cached


@dataclass(frozen=True)
class Buffer:
    """An entry of the table. lifetime: run (whole training), step (one micro-batch, through head and blocks), block
    (within a block's pass), head (within the head's pass). backward: whether only training uses it. saved: whether
    checkpoints hold it, besides the parameters and the optimizer's moments.
    """

    name: str
    shape: tuple[int, ...]
    lifetime: str
    dtype: str = "float32"
    backward: bool = False
    saved: bool = False

    @property
    def nbytes(self) -> int:
        return math.prod(self.shape) * np.dtype(self.dtype).itemsize


@dataclass(frozen=True)
class Layout:
    """The offset of each buffer in bytes. From `temporary` on, nothing is kept between two micro-batches."""

    offsets: dict[str, int]
    temporary: int
    nbytes: int


def lay_out(buffers: Iterable[Buffer]) -> Layout:
    """First the buffers of the run, on separate pages; then those of a step; then those of blocks and head, shared."""
    table = list(buffers)
    offsets = {}

    def place(lifetime: str, offset: int) -> int:
        for b in table:
            if b.lifetime == lifetime:
                offsets[b.name] = offset
                offset += -(-b.nbytes // ALIGN) * ALIGN
        return offset

    temporary = -(-place("run", 0) // mmap.PAGESIZE) * mmap.PAGESIZE
    shared = place("step", temporary)
    return Layout(offsets, temporary, max(place("block", shared), place("head", shared)))


def arena_bytes(buffers: Iterable[Buffer]) -> int:
    return lay_out(buffers).nbytes


class Arena:
    """Holds every buffer of the table in one allocation of the backend."""

    def __init__(self, buffers: Iterable[Buffer], allocate: Callable[[int], Memory]) -> None:
        self.buffers = {b.name: b for b in buffers}
        layout = lay_out(self.buffers.values())
        self.nbytes = layout.nbytes
        self._temporary = layout.temporary
        self._memory = allocate(self.nbytes)
        array = self._memory.array
        self._flat = {b.name: array[layout.offsets[b.name]:layout.offsets[b.name] + b.nbytes].view(b.dtype)
                      for b in self.buffers.values()}
        self._views: dict[tuple[str, tuple[int, ...]], np.ndarray] = {}  # every step uses the same ones

    def release(self) -> None:
        """Between two micro-batches: returns the memory that only these use to the system. It reads as zeros then."""
        if self._temporary < self.nbytes:
            self._memory.discard(self._temporary)

    def __contains__(self, name: str) -> bool:
        return name in self._flat

    def flat(self, name: str) -> np.ndarray:
        """The whole buffer, 1-D."""
        return self._flat[name]

    def part(self, name: str, i: int, *shape: int) -> np.ndarray:
        """The first prod(shape) elements of the i-th entry of a buffer, as a contiguous array of this shape."""
        begin = i * math.prod(self.buffers[name].shape[1:])
        return self._flat[name][begin:begin + math.prod(shape)].reshape(shape)

    def view(self, name: str, *shape: int) -> np.ndarray:
        """The buffer's first prod(shape) elements as a contiguous array of this shape."""
        if (found := self._views.get((name, shape))) is not None:
            return found
        if len(self._views) >= VIEWS:
            self._views.clear()
        made = self._flat[name][:math.prod(shape)].reshape(shape)
        self._views[name, shape] = made
        return made
