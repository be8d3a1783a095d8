"""LoRA with a frozen B: A alone is trained, the other half of RoLoRA (Chen et al. 2025, arXiv:2502.01755).

Devices that share B can add their A: the sum of B A over devices is B times the sum of A. Without a start adapter B is
drawn as LoRA draws A, and A begins at zero, so that the update is zero.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from ..backends.arena import Arena, Buffer
from ..backends.base import Array, Backend
from .base import Frozen, Shapes, register
from .factored import CarvedFactored, Parts, Scaled, views
from .lora import Pair, init_pairs


@register
@dataclass(frozen=True)
class LoraFb(Scaled):
    """LoRA with a frozen B, for devices that learn together and take turns with lora-fa."""

    name: ClassVar[str] = "lora-fb"

    def parts(self, n: int, k: int) -> Parts:  # noqa: ARG002
        return {"a": (self.rank, k)}

    def state(self, shapes: Shapes) -> list[Buffer]:
        """B: a start adapter may have brought another than the seed's."""
        return [Buffer("frozen_b", (self.rank * sum(n for n, _ in shapes.values()),), "run")]

    def carve(self, shapes: Shapes, arena: Arena, ops: Backend, seed: int) -> CarvedLoraFb:
        return CarvedLoraFb(self, shapes, arena, ops, seed)


class CarvedLoraFb(CarvedFactored):
    """frozen: B of each projection, a view of the arena."""

    family: LoraFb

    def begin(self, seed: int) -> None:
        frozen = views(lambda n, _: {"b": (n, self.family.rank)}, self.shapes, self.arena.flat("frozen_b"))
        self.frozen = {name: parts["b"] for name, parts in frozen.items()}
        for name, (n, k) in self.shapes.items():
            drawn = init_pairs({name: (k, n)}, min(self.family.rank, n), self.family.scale, seed)[name].a.T
            self.frozen[name].fill(0.0)
            self.frozen[name][:, :drawn.shape[1]] = drawn
            self.values[name]["a"].fill(0.0)

    def b(self, name: str, out: Array) -> Array:  # noqa: ARG002
        return self.frozen[name]

    def backward(self, linear: Frozen, dinp: Array | None, dout: Array, kept: Array | None,  # noqa: ARG002
                 accumulate: bool) -> None:
        """B has no gradient: du [T, R] = scale * dout . b alone."""
        b = self._b(linear)
        du = self.arena.view("du", dout.shape[0], self.family.rank)
        self.ops.matmul_backward(du, dout, b, "F32", self.family.scale, precision=linear.precision)
        if dinp is not None:
            linear.backward(dinp, dout, accumulate, (du, self._a(linear)))

    def set_pair(self, name: str, pair: Pair) -> None:
        self.frozen[name][:] = pair.b * np.float32(pair.scale / self.family.scale)
        self.values[name]["a"][:] = pair.a
