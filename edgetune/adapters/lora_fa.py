"""LoRA-FA (Zhang et al. 2023, arXiv:2308.03303): A stays as it was drawn, B alone is trained.

A has no gradient, no moments of the optimizer and no copy as the best one: at rank R that saves four of A's sizes.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from ..backends.arena import Arena, Buffer
from ..backends.base import Array, Backend
from .base import Frozen, Shapes, register
from .factored import CarvedFactored, Parts, Scaled, views
from .lora import Pair


@register
@dataclass(frozen=True)
class LoraFa(Scaled):
    """LoRA with a frozen A: fewer trained parameters, a file of the same size."""

    name: ClassVar[str] = "lora-fa"
    takes_experts: ClassVar[bool] = True

    def parts(self, n: int, k: int) -> Parts:  # noqa: ARG002
        return {"b": (n, self.rank)}

    def state(self, shapes: Shapes) -> list[Buffer]:
        """A: a start adapter may have brought another than the seed's."""
        return [Buffer("frozen_a", (self.rank * sum(k for _, k in shapes.values()),), "run")]

    def carve(self, shapes: Shapes, arena: Arena, ops: Backend, seed: int) -> CarvedLoraFa:
        return CarvedLoraFa(self, shapes, arena, ops, seed)


class CarvedLoraFa(CarvedFactored):
    """frozen: A of each projection, a view of the arena."""

    family: LoraFa

    def begin(self, seed: int) -> None:
        frozen = views(lambda _, k: {"a": (self.family.rank, k)}, self.shapes, self.arena.flat("frozen_a"))
        self.frozen = {name: parts["a"] for name, parts in frozen.items()}
        super().begin(seed)

    def a(self, name: str, out: Array) -> Array:  # noqa: ARG002
        return self.frozen[name]

    def finish(self, linear: Frozen, inp: Array) -> None:
        """A has no gradient."""

    def set_pair(self, name: str, pair: Pair) -> None:
        self.frozen[name][:] = pair.a
        self.values[name]["b"][:] = pair.b * np.float32(pair.scale / self.family.scale)
