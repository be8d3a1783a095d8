"""VeRA (Kopiczko et al. 2024, arXiv:2310.11454): W x + b * (B (d * (A x))), with random A and B that all projections
share, and trained vectors d [R] and b [N].

A projection takes the first K columns of A and the first N rows of B, as in PEFT. The file is a plain LoRA, with d and
b multiplied into A and B: it is as large as a LoRA of this rank, however few the trained parameters are.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from ..backends.arena import Arena, Buffer
from ..backends.base import Array, Backend
from ..errors import MismatchError
from ..options import option
from .base import Artifact, Group, Shapes, register
from .factored import RANK, CarvedFactored, Factored, Parts
from .lora import Pair

START = 0.1  # of d; b begins with 0
TOLERANCE = 1e-3  # of a start adapter's A and B, relative to their largest value


@register
@dataclass(frozen=True)
class Vera(Factored):
    """Two trained vectors a projection, around random matrices: the fewest trained parameters."""

    name: ClassVar[str] = "vera"
    size: ClassVar[tuple[str, ...]] = ("rank", "projection_seed")
    rank: int = option(64, f"{RANK} It may be large, but computing grows with it.", low=1, common=True)
    projection_seed: int = option(0, "Seed of the random matrices, which all adapters of one seed share.", low=0,
                                  high=2**63 - 1)
    vector_rate: float = option(10.0, "Learning rate of the vectors as a multiple of --lr.", low=0.01, high=1000.0)

    def parts(self, n: int, k: int) -> Parts:  # noqa: ARG002
        return {"d": (self.rank,), "b": (n,)}

    def group(self, part: str, size: int) -> Group:
        return Group(part, size, self.vector_rate)

    def state(self, shapes: Shapes) -> list[Buffer]:
        n, k = map(max, zip(*shapes.values(), strict=True))
        return [Buffer("vera_a", (self.rank, k), "run"), Buffer("vera_b", (n, self.rank), "run")]

    def carve(self, shapes: Shapes, arena: Arena, ops: Backend, seed: int) -> CarvedVera:
        return CarvedVera(self, shapes, arena, ops, seed)


class CarvedVera(CarvedFactored):
    """shared_a [R, largest K], shared_b [largest N, R]: views of the arena."""

    family: Vera

    def begin(self, seed: int) -> None:  # noqa: ARG002  # nothing depends on the seed of the run
        rank = self.family.rank
        rng = np.random.default_rng(self.family.projection_seed)
        self.shared_a = self.arena.flat("vera_a").reshape(rank, -1)
        self.shared_b = self.arena.flat("vera_b").reshape(-1, rank)
        for shared in (self.shared_a, self.shared_b):
            bound = math.sqrt(6 / shared.shape[1])  # Kaiming's, as in PEFT
            shared[:] = rng.uniform(-bound, bound, shared.shape)
        for parts in self.values.values():
            parts["d"].fill(START)
            parts["b"].fill(0.0)

    def a(self, name: str, out: Array) -> Array:
        return np.multiply(self._a_of(name), self.values[name]["d"][:, None], out=out)

    def b(self, name: str, out: Array) -> Array:
        return np.multiply(self._b_of(name), self.values[name]["b"][:, None], out=out)

    def pull_a(self, name: str, da: Array) -> None:
        self.gradients[name]["d"] += np.einsum("rk,rk->r", da, self._a_of(name))

    def pull_b(self, name: str, db: Array) -> None:
        self.gradients[name]["b"] += np.einsum("nr,nr->n", db, self._b_of(name))

    def load(self, found: Artifact, source: str) -> None:
        super().load(found, source)
        for name, pair in found.pairs.items():
            ours = self._pair(name, self.open_ranks(name))
            theirs = pair.b * np.float32(pair.scale)
            if not (_is_near(ours.a, pair.a) and _is_near(ours.b, theirs)):
                raise MismatchError(f"{source} is no adapter of VeRA with --projection-seed "
                                    f"{self.family.projection_seed}", "begin with the options that it was trained with")

    def set_pair(self, name: str, pair: Pair) -> None:
        """The vectors that come nearest to the pair; `load` checks that they are it."""
        a, b = self._a_of(name), self._b_of(name)
        parts = self.values[name]
        parts["d"][:] = np.einsum("rk,rk->r", pair.a, a) / np.einsum("rk,rk->r", a, a)
        parts["b"][:] = np.einsum("nr,nr->n", pair.b, b) * pair.scale / np.einsum("nr,nr->n", b, b)

    def _a_of(self, name: str) -> Array:
        return self.shared_a[:, :self.shapes[name][1]]

    def _b_of(self, name: str) -> Array:
        return self.shared_b[:self.shapes[name][0]]


def _is_near(ours: np.ndarray, theirs: np.ndarray) -> bool:
    return bool(np.abs(ours - theirs).max() <= TOLERANCE * np.abs(theirs).max())
