"""DyLoRA (Valipour et al. 2023, arXiv:2210.07558): nested ranks, so that one training is cut to any smaller rank.

Each step draws a rank b, evenly from 1 to R, and learns with the first b rows of A and columns of B at the scale
alpha / b. All of them are updated. The others get a gradient of 0 in that step, and AdamW's moments count it.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar

import numpy as np

from ..backends.arena import Arena
from ..backends.base import Array, Backend
from ..errors import UsageError
from ..options import option
from .base import Artifact, Shapes, register
from .factored import CarvedFactored, Scaled
from .lora import Pair


@register
@dataclass(frozen=True)
class DyLora(Scaled):
    """LoRA whose first ranks are an adapter by themselves: `edgetune adapters export --rank` cuts it."""

    name: ClassVar[str] = "dylora"
    takes_experts: ClassVar[bool] = True
    rank: int = option(16, "Largest rank; the adapter can be cut to each smaller one.", low=1, common=True)

    def carve(self, shapes: Shapes, arena: Arena, ops: Backend, seed: int) -> CarvedDyLora:
        return CarvedDyLora(self, shapes, arena, ops, seed)

    @classmethod
    def cut(cls, found: Artifact, rank: int) -> Artifact:
        """The first ranks, at the same alpha."""
        least = min(pair.rank for pair in found.pairs.values())
        if not 1 <= rank <= least:
            raise UsageError(f"rank {rank} is not between 1 and {least}, the adapter's own", "name a smaller rank")
        pairs = {name: Pair(pair.a[:rank], np.ascontiguousarray(pair.b[:, :rank]), pair.scale * pair.rank / rank)
                 for name, pair in found.pairs.items()}
        options = {**found.setting.options, "rank": rank}
        return replace(found, pairs=pairs, setting=replace(found.setting, options=options))


class CarvedDyLora(CarvedFactored):
    """drawn: the rank of the present step."""

    family: DyLora
    drawn = 0

    def before_step(self, seed: int) -> None:
        self.drawn = int(np.random.default_rng(seed).integers(1, self.family.rank + 1))

    def a(self, name: str, out: Array) -> Array:
        whole = self.values[name]["a"]
        if not (self.is_learning and self.drawn):
            return whole
        np.multiply(whole[:self.drawn], self._factor, out=out[:self.drawn])
        out[self.drawn:] = 0
        return out

    def pull_a(self, name: str, da: Array) -> None:
        if self.is_learning and self.drawn:
            self.gradients[name]["a"][:self.drawn] += da[:self.drawn] * self._factor
        else:
            self.gradients[name]["a"] += da

    @property
    def _factor(self) -> float:
        """The ratio of the scales alpha / b and alpha / R."""
        return self.family.rank / self.drawn
