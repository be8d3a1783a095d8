"""Keys and values that several blocks attend to: one block makes them, its borrowers take them as they are.

They stay in the arena from the owner's forward pass until backward has left the owner, whichever blocks are computed
again in between: those of block i in "k@i" and "v@i" (kept.py). Their gradients are summed in "dk@i" and "dv@i" by the
borrowers, from the last one down, and enter the projections of the owner with those that it adds.

T tokens of a batch, G heads of keys, C their width.
"""

from __future__ import annotations

import numpy as np

from ..backends.arena import Arena, Buffer
from ..backends.base import Backend
from ..formats.shape import Shape
from .linear import RunShape

LENT = ("k", "v")  # the activations that borrowers take


def lent_buffers(s: Shape, run: RunShape, tokens: int) -> list[Buffer]:
    """The sums of gradients; keys and values themselves are activations."""
    return [Buffer(f"d{name}@{owner}", (tokens, s.of(owner).d_kv), "step", backward=True)
            for owner in s.lenders if owner >= run.lowest for name in LENT]


class LentKeys:
    """The sums of gradients, in an arena with `lent_buffers`. Owners that backward does not reach have none."""

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
