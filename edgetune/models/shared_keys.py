"""Keys and values that are shared: by the batches after a prefix, or by several blocks.

A prefix is computed apart from the batches after it (data/trees.py): its keys and values in every block, and the
gradients that these batches add to them. If there is room, the inputs of its blocks are kept too, and its backward
begins from them; otherwise it is passed forward again.

Letters: T tokens of a batch, P of its prefix, G heads of keys, C their width.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from ..backends.arena import Arena, Buffer
from ..backends.base import Backend
from ..formats.shape import Shape
from .linear import RunShape

if TYPE_CHECKING:
    from ..data.packing import Batch

LENT = ("k", "v")  # the activations that borrowers take


def prefix_buffers(s: Shape, run: RunShape) -> list[Buffer]:
    """The buffers for prefixes of up to run.prefix tokens; seen: keys or values of a prefix, then of a batch."""
    if not run.prefix:
        return []
    half = run.activations
    prefix = run.prefix + run.virtual
    kept = (s.n_layer, prefix, s.d_kv)
    learned = (s.n_layer - run.lowest, prefix, s.d_kv)
    seen = (prefix + run.max_tokens, s.d_kv)
    inputs = Buffer("prefix_x", (s.n_layer - run.lowest, prefix, s.d_model), "step")
    return [Buffer("prefix_k", kept, "step", half), Buffer("prefix_v", kept, "step", half),
            Buffer("prefix_dk", learned, "step"), Buffer("prefix_dv", learned, "step"),
            Buffer("seen_k", seen, "block", half), Buffer("seen_v", seen, "block", half),
            Buffer("added", (prefix, s.d_kv), "block"),
            *([inputs] if run.prefix_inputs else [])]


class SharedPrefix:
    """The prefix in an arena with `prefix_buffers`. Calls do nothing for a batch that is no prefix and follows none."""

    def __init__(self, shape: Shape, run: RunShape, ops: Backend, arena: Arena) -> None:
        self.shape = shape
        self.run = run
        self.ops = ops
        self.arena = arena

    def begin(self) -> None:
        """Sets the gradients of a prefix to 0, before the batches that follow it."""
        self.ops.synchronize()
        self.arena.flat("prefix_dk").fill(0.0)
        self.arena.flat("prefix_dv").fill(0.0)

    def keeps_inputs(self, batch: Batch) -> bool:
        """Whether this is a prefix, and the inputs of its trained blocks are kept."""
        return batch.is_prefix and self.run.prefix_inputs

    def block_x(self, layer: int, t: int) -> np.ndarray:
        """The input of a trained block, [P, D], where it is kept. t: P."""
        return self.arena.part("prefix_x", layer - self.run.lowest, t, self.shape.d_model)

    def keep_x(self, layer: int, x: np.ndarray) -> None:
        """Keeps the input of a trained block [P, D]."""
        self.ops.copy(self.block_x(layer, len(x)), x)

    def keep(self, layer: int, k: np.ndarray, v: np.ndarray, batch: Batch) -> None:
        """Keeps a prefix's keys and values [P, G, C]."""
        if batch.is_prefix and self.shape.owner(layer) == layer:
            self.ops.copy(self._kept("k", layer, len(k)), k)
            self.ops.copy(self._kept("v", layer, len(v)), v)

    def seen(self, layer: int, k: np.ndarray, v: np.ndarray, batch: Batch) -> tuple[np.ndarray, np.ndarray]:
        """The keys and values that a batch's queries see: its own [T, G, C], after those of its prefix."""
        return self._seen("k", layer, k, batch.behind), self._seen("v", layer, v, batch.behind)

    def own_gradients(self, layer: int, dk: np.ndarray, dv: np.ndarray, batch: Batch) -> tuple[np.ndarray, np.ndarray]:
        """The gradients [T, G, C] of a batch's own keys and values, from those of all that it sees. The part that
        belongs to its prefix is kept for the prefix; a prefix adds what was kept for it.
        """
        return self._own("dk", layer, dk, batch), self._own("dv", layer, dv, batch)

    def _seen(self, name: str, layer: int, own: np.ndarray, n: int) -> np.ndarray:
        if not n:
            return own
        seen = self.arena.view(f"seen_{name}", n + len(own), *own.shape[1:])
        self.ops.copy(seen[:n], self._kept(name, layer, n))
        self.ops.copy(seen[n:], own)
        return seen

    def restore(self, layer: int, k: np.ndarray, v: np.ndarray) -> None:
        """k, v [P, G, C] = a prefix's keys and values, as `keep` has kept them."""
        self.ops.copy(k, self._kept("k", layer, len(k)))
        self.ops.copy(v, self._kept("v", layer, len(v)))

    def _own(self, name: str, layer: int, grad: np.ndarray, batch: Batch) -> np.ndarray:
        n = len(grad) if batch.is_prefix else batch.behind
        owner = self.shape.owner(layer)
        if not n or (batch.is_prefix and owner != layer):
            return grad
        if owner < self.run.lowest:  # which backward does not reach
            return grad[n:]
        kept = self._kept(name, layer, n)
        added = self.arena.view("added", *kept.shape)
        self.ops.copy(added, grad[:n])
        if not batch.is_prefix:
            self.ops.add(kept.reshape(-1), added.reshape(-1))
            return grad[n:]
        self.ops.add(added.reshape(-1), kept.reshape(-1))
        self.ops.copy(grad, added)
        return grad

    def _kept(self, name: str, layer: int, n: int) -> np.ndarray:
        """The first n tokens of the keys that a block attends to, [n, G, C]; gradients are those of trained blocks."""
        s = self.shape.of(layer)
        layer = self.shape.owner(layer)
        first = self.run.lowest if name.startswith("d") else 0
        return self.arena.part(f"prefix_{name}", layer - first, n, s.n_kv, s.d_head)


def lent_buffers(s: Shape, run: RunShape, tokens: int) -> list[Buffer]:
    """The sums of gradients; keys and values themselves are activations."""
    return [Buffer(f"d{name}@{owner}", (tokens, s.of(owner).d_kv), "step", backward=True)
            for owner in s.lenders if owner >= run.lowest for name in LENT]


class LentKeys:
    """The sums of gradients of keys and values that one block makes and its borrowers take as they are, in an arena
    with `lent_buffers`. Owners that backward does not reach have none.

    Keys and values stay in the arena from the owner's forward pass until backward has left the owner, whichever blocks
    are computed again in between: those of block i in "k@i" and "v@i" (kept.py). Their gradients are summed in "dk@i"
    and "dv@i" by the borrowers, from the last one down, and enter the projections of the owner with those that it adds.
    """

    def __init__(self, shape: Shape, run: RunShape, ops: Backend, arena: Arena) -> None:
        self._shape = shape
        self._lowest = run.lowest
        self._ops = ops
        self._arena = arena

    def begin(self) -> None:
        """Sets the sums to 0, before backward."""
        for owner in self._shape.lenders:
            if owner >= self._lowest:
                self._ops.synchronize()
                for name in LENT:
                    self._arena.flat(f"d{name}@{owner}").fill(0.0)

    def add(self, layer: int, dk: np.ndarray, dv: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Adds a block's gradients of keys and values [T, G, C] to those of their owner; returns the sums, or what was
        given where a block's keys are its own alone.
        """
        owner = self._shape.owner(layer)
        if owner not in self._shape.lenders or owner < self._lowest:
            return dk, dv
        sums = [self._arena.view(f"d{name}@{owner}", *dk.shape) for name in LENT]
        for total, grad in zip(sums, (dk, dv), strict=True):
            self._ops.add(total.reshape(-1), grad.reshape(-1))
        return sums[0], sums[1]
