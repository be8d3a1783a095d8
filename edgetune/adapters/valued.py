"""LoRA with a value beside it: a linear head on the last hidden state, which estimates the rewards that are to come."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from ..backends.arena import Arena
from ..backends.base import Array
from .base import Group, Shapes
from .low_rank import LoraFamily


@dataclass(frozen=True)
class ValuedLora(LoraFamily):
    """width: D, of the hidden state. The head begins at 0, and is no part of the adapter that is exported."""

    name: ClassVar[str] = "lora with a value"
    width: int = 0

    def parameters(self, shapes: Shapes) -> list[Group]:
        return [*super().parameters(shapes), Group("value", self.width + 1, decay=False, exported=False)]


class ValueHead:
    """In the arena of a ValuedLora: value [S] = h [S, D] . weight + bias, h the normed last hidden state."""

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
