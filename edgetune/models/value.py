"""A value head: a linear function of the last hidden state, which estimates the rewards that are to come."""

from __future__ import annotations

import numpy as np

from ..adapters.base import Group
from ..backends.arena import Arena
from ..backends.base import Array


def value_group(width: int) -> Group:
    """Its parameters, for a hidden state of this width: the weight and a bias, both 0 at first."""
    return Group("value", width + 1, decay=False, exported=False)


class ValueHead:
    """A value head, whose parameters are the last of an arena: value [S] = h [S, D] . weight + bias.

    h is the normed hidden state.
    """

    def __init__(self, arena: Arena, width: int) -> None:
        self._value = arena.flat("lora")[-width - 1:]
        self._gradient = arena.flat("dlora")[-width - 1:]

    def forward(self, h: Array) -> Array:
        found: Array = h @ self._value[:-1] + self._value[-1]
        return found

    def backward(self, h: Array, dvalue: Array) -> None:
        """Accumulates the gradient of the head."""
        self._gradient[:-1] += dvalue @ h
        self._gradient[-1] += dvalue.sum()

    def add_to(self, dh: Array, dvalue: Array) -> None:
        """dh [S, D] += dvalue [S] times the weight."""
        dh += np.outer(dvalue, self._value[:-1])
