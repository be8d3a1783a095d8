"""LoRA Dropout (Lin et al. 2024, arXiv:2404.09610): each step leaves out inputs of A and outputs of B.

A mask of columns of A and one of rows of B is drawn for each projection and step, the same for all tokens of the step.
Ranks are never left out. What remains of each is scaled by 1 / (1 - dropout), so that the mean update is the whole one.
The paper averages several masks a step and over several masked models in its answers; here it is one, and none.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from ..backends.arena import Arena, Buffer
from ..backends.base import Array, Backend
from ..options import option
from .base import Shapes, register
from .factored import CarvedFactored, Scaled, views


@register
@dataclass(frozen=True)
class LoraDropout(Scaled):
    """LoRA with dropout of rows and columns of the update, against overfitting."""

    name: ClassVar[str] = "lora-dropout"
    takes_experts: ClassVar[bool] = True
    dropout: float = option(0.3, "Share of a projection's inputs, and of its outputs, that a step leaves out.", low=0.0,
                            high=0.95, common=True)

    def buffers(self, tokens: int, shapes: Shapes, activations: str) -> list[Buffer]:
        masks = Buffer("masks", (sum(n + k for n, k in shapes.values()),), "run", backward=True)
        return [*super().buffers(tokens, shapes, activations), masks]

    def carve(self, shapes: Shapes, arena: Arena, ops: Backend, seed: int) -> CarvedLoraDropout:
        return CarvedLoraDropout(self, shapes, arena, ops, seed)


class CarvedLoraDropout(CarvedFactored):
    """masks: of the inputs "a" [K] and the outputs "b" [N] of each projection: 0, or 1 / (1 - dropout)."""

    family: LoraDropout

    def __init__(self, family: LoraDropout, shapes: Shapes, arena: Arena, ops: Backend, seed: int) -> None:
        super().__init__(family, shapes, arena, ops, seed)
        self.masks: dict[str, dict[str, Array]] = {}

    def before_step(self, seed: int) -> None:
        self.ops.synchronize()
        flat = self.arena.flat("masks")
        self.masks = views(lambda n, k: {"a": (k,), "b": (n,)}, self.shapes, flat)
        np.random.default_rng(seed).random(out=flat, dtype=np.float32)
        np.multiply(flat >= self.family.dropout, np.float32(1 / (1 - self.family.dropout)), out=flat)

    @property
    def _is_masked(self) -> bool:
        return self.is_learning and bool(self.masks)

    def a(self, name: str, out: Array) -> Array:
        whole = super().a(name, out)
        return np.multiply(whole, self.masks[name]["a"], out=out) if self._is_masked else whole

    def b(self, name: str, out: Array) -> Array:
        whole = super().b(name, out)
        return np.multiply(whole, self.masks[name]["b"][:, None], out=out) if self._is_masked else whole

    def pull_a(self, name: str, da: Array) -> None:
        super().pull_a(name, np.multiply(da, self.masks[name]["a"], out=da) if self._is_masked else da)

    def pull_b(self, name: str, db: Array) -> None:
        super().pull_b(name, np.multiply(db, self.masks[name]["b"][:, None], out=db) if self._is_masked else db)
