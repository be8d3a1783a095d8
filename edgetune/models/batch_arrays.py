"""The arrays of a batch that the ops of blocks read, in the arena: at the same place for batches of equal sizes; and
the tokens whose output of a block is needed.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from ..backends.arena import Arena, Buffer
from ..backends.base import Array, Backend

if TYPE_CHECKING:
    from ..data.packing import Batch

ROOM = ("dx", "dq", "datt")  # buffers of backward that are free in forward and hold needed tokens
WORTHWHILE = 0.9  # share of a batch's tokens up to which packing costs less than computing the others


class Needed:
    """The tokens of a batch of T tokens whose output of a block is needed: in the last block, those that something is
    predicted from, and also in those before it from the last one on that makes keys and values (Shape.last_maker).

    For the others that block computes only keys and values, because tokens attend to these. Queries, output projection
    and MLP are computed for needed tokens alone, packed in arrays [N, width]; if all are needed, in the block's own
    arrays. count: N; positions: int32 [N], as ops read them.
    """

    def __init__(self, ops: Backend, arena: Arena, positions: Array, tokens: NDArray[np.int64] | None = None) -> None:
        """tokens [N], ascending; None: all T. positions: of these."""
        self._ops = ops
        self._arena = arena
        self._tokens = tokens
        self.count = positions.size
        self.positions = positions

    def room(self, whole: Array, name: str) -> Array:
        """[N, width], room for the needed part of `whole` [T, width]: the buffer of that name, or `whole` itself."""
        return whole if self._tokens is None else self._arena.view(name, self.count, *whole.shape[1:])

    def taken(self, whole: Array, name: str) -> Array:
        """The needed part of `whole` [T, width], in its room."""
        part = self.room(whole, name)
        if self._tokens is not None:
            self._ops.synchronize()
            np.take(whole, self._tokens, axis=0, out=part, mode="clip")  # which needs no copy; none is out of range
        return part

    def put(self, whole: Array, part: Array) -> None:
        """Sets `whole` [T, width] to `part` at needed tokens, to 0 at the others."""
        if self._tokens is not None:
            self._ops.synchronize()
            whole.fill(0)
            whole[self._tokens] = part


def predicting(ops: Backend, arena: Arena, batch: Batch, every: Needed) -> Needed:
    """The tokens from which something is predicted. It is `every` token if they are nearly all, if a decoder that only
    measures has no room to pack them, or if passes are recorded, because passes of as many tokens would differ.
    """
    tokens = np.unique(batch.supervised) if batch.supervised.size else np.zeros(1, np.int64)  # an op has one at least
    if ops.records or tokens.size > WORTHWHILE * every.count or any(name not in arena for name in ROOM):
        return every
    return Needed(ops, arena, ops.place(batch.positions[tokens]), tokens)


def placed_buffers(tokens: int, prefix: int) -> list[Buffer]:
    """The buffers for batches of up to `tokens` tokens after a prefix of up to `prefix`."""
    return [Buffer("positions", (tokens,), "step", "int32"),
            Buffer("seen_ends", (prefix + tokens,), "step", "int32"),
            Buffer("seen_positions", (prefix + tokens,), "step", "int32")]


class BatchPositions:
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
