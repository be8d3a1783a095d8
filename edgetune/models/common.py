"""What the sublayers of a decoder have in common: sizes, ops, memory, and the arrays of the batch that is computed."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from ..backends.arena import Arena
from ..backends.base import Array, Backend, bf16, floats
from ..formats.shape import Shape
from .batch_arrays import BatchPositions, Needed
from .kept import Kept
from .linear import Activations, Projections, RunShape
from .norms import Norms
from .shared_keys import LENT, LentKeys, SharedPrefix
from .states import States
from .stream import Stream
from .structure import kept_widths, lent

if TYPE_CHECKING:
    from ..data.packing import Batch

@dataclass(frozen=True)
class Cached:
    """What a pass takes of earlier ones and keeps for later ones. attend: in place of `SelfAttention.attend`; states:
    of blocks without keys, where there are some. key: equal for passes of as many tokens whose ops are the same on the
    same memory; None: they never are.
    """

    attend: Callable[[int, Activations, np.ndarray, np.ndarray, np.ndarray, Batch], None]
    states: States | None = None
    key: Hashable | None = None


class Common:
    """See above. cached: of a pass that continues earlier ones; rope: (cos, sin) of each kind of block."""

    def __init__(self, shape: Shape, run: RunShape, ops: Backend, arena: Arena, stream: Stream,
                 vectors: Mapping[str, np.ndarray], linear: Projections, norms: Norms) -> None:
        self.shape = shape
        self.run = run
        self.ops = ops
        self.arena = arena
        self.stream = stream
        self.weights = stream.weights
        self.vectors = vectors
        self.linear = linear
        self.norms = norms
        self.virtual = Virtual(ops, linear)
        self.prefix = SharedPrefix(shape, run, ops, arena)
        self.lent = LentKeys(shape, run, ops, arena)
        self.kept = Kept([kept_widths(shape, run, layer) for layer in range(shape.n_layer)], run, ops, arena,
                         lent(shape))
        self.rope = self._rope()
        self.cached: Cached | None = None
        self._placed: BatchPositions | None = None

    def _rope(self) -> Sequence[tuple[np.ndarray, np.ndarray]]:
        s = self.shape
        tables = []
        positions = self.run.max_length + self.run.virtual
        for i, rope in enumerate(s.ropes[:2 if any(s.windows) else 1]):
            n_rot = s.rotated(i)
            cos = self.arena.view(f"cos{i}", positions, n_rot // 2)
            sin = self.arena.view(f"sin{i}", positions, n_rot // 2)
            cos[:], sin[:] = rope.tables(positions, n_rot)
            tables.append((cos, sin))
        return tables

    def restore_lent(self, first: int, batch: Batch) -> None:
        """Sets keys and values that blocks from `first` on take of blocks before it to those that a prefix has kept."""
        s = self.shape
        for owner in s.lenders:
            if owner < first:
                k = self.kept.of(owner, batch.tokens.size)
                own = s.of(owner)
                self.prefix.restore(owner, *(k[name].reshape(-1, own.n_kv, own.d_head) for name in LENT))

    def place(self, batch: Batch) -> BatchPositions:
        """The arrays of a batch that ops read; the last batch's are kept."""
        if self._placed is None or self._placed.batch is not batch:
            self._placed = BatchPositions(self.ops, self.arena, batch)
        return self._placed

    def kept_of(self, layer: int, batch: Batch) -> tuple[Needed, Activations, Activations]:
        """The tokens whose output of a block is needed; the activations of all, and of these."""
        placed = self.place(batch)
        needed = placed.last if self._is_late(layer) else placed.every
        return needed, self.kept.of(layer, batch.tokens.size), self.kept.of(layer, needed.count)

    def is_partial(self, layer: int, batch: Batch) -> bool:
        """Whether a block's output is needed for some tokens alone."""
        placed = self.place(batch)
        return self._is_late(layer) and placed.last is not placed.every

    def _is_late(self, layer: int) -> bool:
        # random numbers go by a token's place in T
        return layer >= self.shape.last_maker and self.linear.adapter.repeats


class Virtual:
    """Gives the virtual tokens of a batch what the adapter has for them: embeddings, or keys and values in every block.
    Calls do nothing for a batch without any.

    They are -1, -2, ... (`Batch.after`): the first P of its tokens in training, anywhere in a forest of prompts.
    """

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
