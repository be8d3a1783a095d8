"""The virtual tokens of an adapter in a decoder: their embeddings, or their keys and values in every block.

In a batch they are -1, -2, ... (`Batch.after`): the first P of its tokens in training, anywhere in a forest of prompts.
T tokens, G heads of keys, C their width.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from ..backends.base import Array, Backend, bf16, floats
from .linear import Projections

if TYPE_CHECKING:
    from ..data.packing import Batch


class Virtual:
    """Gives the virtual tokens of a batch what the adapter has for them. Calls do nothing for a batch without any."""

    def __init__(self, ops: Backend, linear: Projections) -> None:
        self._ops = ops
        self._linear = linear

    def embed(self, x: Array, batch: Batch) -> None:
        """Sets their embeddings in x [T, D]."""
        at = np.flatnonzero(batch.tokens < 0)
        if at.size and self._linear.adapts("input"):
            self._ops.synchronize()
            x[at] = self._linear.adapter.virtual_forward()[-1 - batch.tokens[at]]

    def embed_backward(self, dx: Array, batch: Batch) -> None:
        """Gives the adapter their part of the gradient of the first block's input."""
        at = np.flatnonzero(batch.tokens < 0)
        if at.size and self._linear.adapts("input"):
            self._ops.synchronize()
            self._linear.adapter.virtual_backward(dx[at])

    def keys(self, layer: int, k: Array, v: Array, batch: Batch) -> None:
        """Sets their keys and values in k and v [T, G * C]."""
        at = np.flatnonzero(batch.tokens < 0)
        if at.size and self._linear.adapts(f"blk.{layer}.keys"):
            self._ops.synchronize()
            rows = -1 - batch.tokens[at]
            for whole, own in zip((k, v), self._linear.adapter.keys_forward(f"blk.{layer}.keys"), strict=True):
                whole[at] = own[rows] if whole.dtype == own.dtype else bf16(own[rows])

    def keys_backward(self, layer: int, dk: Array, dv: Array, batch: Batch) -> None:
        """Gives the adapter their part of dk and dv [T, G, C], which goes no further."""
        at = np.flatnonzero(batch.tokens < 0)
        if at.size and self._linear.adapts(f"blk.{layer}.keys"):
            self._ops.synchronize()
            own = [floats(grad[at]).reshape(at.size, -1) for grad in (dk, dv)]
            self._linear.adapter.keys_backward(f"blk.{layer}.keys", *own)
            dk[at] = 0
            dv[at] = 0
