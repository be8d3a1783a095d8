"""Which tokens of a batch a block's output is needed of: in the last block, those that something is predicted from.

Of the others it gives keys and values alone, as these are seen. Its queries, output projection and MLP are computed for
the needed tokens, in arrays [N, width] in which they stand together; where all are needed, those are the block's own.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from ..backends.arena import Arena
from ..backends.base import Array, Backend

if TYPE_CHECKING:
    from ..data.packing import Batch

ROOM = ("dx", "dq", "datt")  # buffers of backward that are free in forward, where needed tokens stand
WORTHWHILE = 0.9  # share of a batch's tokens up to which bringing them together costs less than computing the others


class Needed:
    """Of one batch of T tokens. count: N; positions: int32 [N], as ops read them."""

    def __init__(self, ops: Backend, arena: Arena, positions: Array, tokens: NDArray[np.int64] | None = None) -> None:
        """tokens [N], ascending; None: all T. positions: of these."""
        self._ops = ops
        self._arena = arena
        self._tokens = tokens
        self.count = positions.size
        self.positions = positions

    def room(self, whole: Array, name: str) -> Array:
        """[N, width] for what `whole` [T, width] has of them: in the buffer of that name, or `whole` itself."""
        return whole if self._tokens is None else self._arena.view(name, self.count, *whole.shape[1:])

    def taken(self, whole: Array, name: str) -> Array:
        """What `whole` [T, width] has of them, in its room."""
        part = self.room(whole, name)
        if self._tokens is not None:
            self._ops.synchronize()
            np.take(whole, self._tokens, axis=0, out=part, mode="clip")  # which needs no copy; none is out of range
        return part

    def put(self, whole: Array, part: Array) -> None:
        """`whole` [T, width] = `part` at them, 0 at the others."""
        if self._tokens is not None:
            self._ops.synchronize()
            whole.fill(0)
            whole[self._tokens] = part


def predicting(ops: Backend, arena: Arena, batch: Batch, every: Needed) -> Needed:
    """Those from which something is predicted. `every` token, where they are nearly all, where a decoder that only
    measures has no room to bring them together, and where passes are recorded, as those of as many tokens would differ.
    """
    tokens = np.unique(batch.supervised) if batch.supervised.size else np.zeros(1, np.int64)  # an op has one at least
    if ops.records or tokens.size > WORTHWHILE * every.count or any(name not in arena for name in ROOM):
        return every
    return Needed(ops, arena, ops.place(batch.positions[tokens]), tokens)
