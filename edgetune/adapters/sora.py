"""SoRA (Ding et al. 2023, arXiv:2311.11696): a gate for each rank, W x + scale * B (g * (A x)), that training closes.

After each step of the optimizer a proximal step of the lasso follows on the gates alone: g becomes
sign(g) max(|g| - eta * sparsity, 0), where eta is the learning rate of the gates. The paper's code subtracts the
threshold without the learning rate, and closes all gates below twice of it, which is no proximal step. A gate opens
again if its gradient moves it out of the threshold.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from ..backends.arena import Arena
from ..backends.base import Array, Backend
from ..options import option
from .base import Group, Shapes, register
from .factored import CarvedFactored, Parts, Scaled
from .lora import Pair


@register
@dataclass(frozen=True)
class Sora(Scaled):
    """LoRA whose ranks close where they help least; closed ones are not in the file."""

    name: ClassVar[str] = "sora"
    prunes: ClassVar[bool] = True
    sparsity: float = option(1.0, "How fast gates close: their threshold in a step, in learning rates.", low=0.0,
                             common=True)
    gate_rate: float = option(1.0, "Learning rate of the gates as a multiple of A's and B's.", low=0.01, high=1000.0)

    def parts(self, n: int, k: int) -> Parts:
        return {**super().parts(n, k), "gate": (self.rank,)}

    def group(self, part: str, size: int) -> Group:
        return Group(part, size, self.gate_rate, decay=False) if part == "gate" else Group(part, size)

    def carve(self, shapes: Shapes, arena: Arena, ops: Backend, seed: int) -> CarvedSora:
        return CarvedSora(self, shapes, arena, ops, seed)


class CarvedSora(CarvedFactored):
    family: Sora

    def begin(self, seed: int) -> None:
        super().begin(seed)
        for name, parts in self.values.items():
            parts["gate"][:] = np.random.default_rng([seed, *name.encode(), 1]).standard_normal(self.family.rank)

    def a(self, name: str, out: Array) -> Array:
        parts = self.values[name]
        return np.multiply(parts["gate"][:, None], parts["a"], out=out)

    def pull_a(self, name: str, da: Array) -> None:
        parts = self.values[name]
        self.gradients[name]["gate"] += np.einsum("rk,rk->r", da, parts["a"])
        self.gradients[name]["a"] += np.multiply(parts["gate"][:, None], da, out=da)

    def after_step(self, step: int, total: int, lr: float) -> None:  # noqa: ARG002
        self.ops.synchronize()
        threshold = np.float32(lr * self.family.gate_rate * self.family.sparsity)
        for parts in self.values.values():
            gate = parts["gate"]
            gate[:] = np.sign(gate) * np.maximum(np.abs(gate) - threshold, 0)

    def open_ranks(self, name: str) -> np.ndarray:
        return np.not_equal(self.values[name]["gate"], 0)

    def set_pair(self, name: str, pair: Pair) -> None:
        """Gates of the pair's ranks are 1; the others are closed, and stay so, for nothing leads through them."""
        parts = self.values[name]
        for part in parts.values():
            part.fill(0.0)
        parts["a"][:pair.rank] = pair.a
        parts["b"][:, :pair.rank] = pair.b * np.float32(pair.scale / self.family.scale)
        parts["gate"][:pair.rank] = 1
