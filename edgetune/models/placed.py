"""The arrays of a batch that the ops of blocks read, in the arena: at the same place for batches of equal sizes."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from ..backends.arena import Arena, Buffer
from ..backends.base import Array, Backend
from .needed import Needed, predicting

if TYPE_CHECKING:
    from ..data.packing import Batch


def placed_buffers(tokens: int, prefix: int) -> list[Buffer]:
    """The buffers for batches of up to `tokens` tokens after a prefix of up to `prefix`."""
    return [Buffer("positions", (tokens,), "step", "int32"),
            Buffer("seen_ends", (prefix + tokens,), "step", "int32"),
            Buffer("seen_positions", (prefix + tokens,), "step", "int32")]


class Placed:
    """positions [T]; ends and positions of all that is seen; int32. every, last: the tokens whose output is needed of a
    block, and of the last one.
    """

    def __init__(self, ops: Backend, arena: Arena, batch: Batch) -> None:
        self.batch = batch
        self.positions: Array = arena.view("positions", batch.positions.size)
        self.seen_ends: Array = arena.view("seen_ends", batch.seen_ends.size)
        self.seen_positions: Array = arena.view("seen_positions", batch.seen_positions.size)
        ops.synchronize()  # the old values are no longer read
        np.copyto(self.positions, batch.positions)
        np.copyto(self.seen_ends, batch.seen_ends)
        np.copyto(self.seen_positions, batch.seen_positions)
        self._ops = ops
        self._arena = arena
        self._before: Array | None = None
        self._pieces: Array | None = None
        self.every = Needed(ops, arena, self.positions)
        self.last = predicting(ops, arena, batch, self.every)

    @property
    def before(self) -> Array:
        """The token before each in its document, int32 [T]; -1 where there is none. The buffer is that of a mixer."""
        if self._before is None:
            self._before = self._arena.view("before", self.batch.before.size)
            self._ops.synchronize()
            np.copyto(self._before, self.batch.before)
        return self._before

    @property
    def pieces(self) -> Array:
        """The pieces of data/packing.py, int32 [P, 5]. The buffer is that of a mixer."""
        if self._pieces is None:
            self._pieces = self._arena.view("pieces", *self.batch.pieces.shape)
            self._ops.synchronize()
            np.copyto(self._pieces, self.batch.pieces)
        return self._pieces
