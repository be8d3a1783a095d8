"""Fusion of LoRAs by scalars: W x + sum_i g_i s_i B_i (A_i x), in which one g_i for each LoRA is all that is trained.

`edgetune adapters combine` writes the LoRAs one after another into one, from which training begins. The file is a plain
LoRA, with g multiplied into A. Without a start A and B are random, which scalars can do little with.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

from ..backends.arena import Arena, Buffer
from ..backends.base import Array, Backend
from ..options import option
from .base import Group, Shapes, register
from .factored import CarvedFactored, Factored, Parts, views
from .lora import Pair, init_pairs


@register
@dataclass(frozen=True)
class Fusion(Factored):
    """Adapters that stay as they are, and a trained weight for each of them."""

    name: ClassVar[str] = "fusion"
    takes_experts: ClassVar[bool] = True
    size: ClassVar[tuple[str, ...]] = ("rank", "sources")
    rate: ClassVar[float] = 100.0
    rank: int = option(16, "Ranks of all adapters together.", low=1, common=True)
    sources: int = option(2, "Adapters in --start, each with as many ranks.", low=1, common=True)

    def parts(self, n: int, k: int) -> Parts:  # noqa: ARG002  # all projections share the weights
        return {}

    def frozen(self, n: int, k: int) -> Parts:
        return {"a": (self.rank, k), "b": (n, self.rank)}

    def parameters(self, shapes: Shapes) -> list[Group]:  # noqa: ARG002
        return [Group("weights", self.sources, decay=False)]

    def smaller(self) -> dict[str, Any]:
        return {}

    def state(self, shapes: Shapes) -> list[Buffer]:
        return [Buffer("fused", (sum(self.rank * (n + k) for n, k in shapes.values()),), "run")]

    def carve(self, shapes: Shapes, arena: Arena, ops: Backend, seed: int) -> CarvedFusion:
        return CarvedFusion(self, shapes, arena, ops, seed)


class CarvedFusion(CarvedFactored):
    """weights [sources]: g. fused: A and B of each projection, of all adapters."""

    family: Fusion

    def begin(self, seed: int) -> None:
        rank = self.family.rank
        sources = self.family.sources
        self.weights, self.dweights = (self.arena.flat(name)[:sources] for name in ("lora", "dlora"))  # heads follow
        self.weights.fill(1.0)
        self.source = np.arange(rank) * sources // rank  # of each rank
        self.fused = views(self.family.frozen, self.shapes, self.arena.flat("fused"))
        for name, (n, k) in self.shapes.items():
            self.fused[name]["a"][:] = init_pairs({name: (n, k)}, rank, 1.0, seed)[name].a
            self.fused[name]["b"][:] = np.random.default_rng([seed, *name.encode()]).standard_normal((n, rank)) / rank

    def a(self, name: str, out: Array) -> Array:
        np.multiply(self.fused[name]["a"], self.weights[self.source][:, None], out=out)
        return out

    def b(self, name: str, out: Array) -> Array:  # noqa: ARG002
        return self.fused[name]["b"]

    def pull_a(self, name: str, da: Array) -> None:
        """dg_i = sum over the ranks of i, and over projections, of <da, A>"""
        np.add.at(self.dweights, self.source, np.einsum("rk,rk->r", da, self.fused[name]["a"]))

    def pull_b(self, name: str, db: Array) -> None:
        """B is frozen."""

    def set_pair(self, name: str, pair: Pair) -> None:
        self.weights.fill(1.0)  # the pair has earlier ones in A
        self.fused[name]["a"][:] = pair.a
        self.fused[name]["b"][:] = pair.b * np.float32(pair.scale)
