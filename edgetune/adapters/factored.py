"""Families whose A and B are functions of what they train: W x + scale * B (A x), which is exported as a LoRA.

A family names the parts that it trains for a projection (`Factored.parts`). Its Carved makes A and B of them (`a`, `b`)
and passes their gradients on to the parts (`pull_a`, `pull_b`). What is here is LoRA's own choice: the parts are A and
B. Products are the engine's, and A and B of one projection at a time are in memory, so that a family is elementwise
numpy on [R, K] and [N, R]. `sora.py` is a short one. Letters: T tokens, N outputs, K inputs, R rank.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from math import prod
from typing import Any, ClassVar

import numpy as np

from ..backends.arena import Arena, Buffer
from ..backends.base import Array, Backend
from ..errors import MismatchError
from ..options import option
from .base import Artifact, Carved, Family, Frozen, Group, Shapes
from .lora import Lora, Pair, check_rank, init_pairs

Parts = dict[str, tuple[int, ...]]
"""Shapes by the name of a part."""


@dataclass(frozen=True)
class Factored(Family):
    """prunes: whether an adapter of it may have fewer ranks and pairs than are trained."""

    size: ClassVar[tuple[str, ...]] = ("rank",)
    prunes: ClassVar[bool] = False
    rank: int = option(8, "Rank R of every trained projection.", low=1, common=True)

    @property
    def scale(self) -> float:
        return 1.0

    def parts(self, n: int, k: int) -> Parts:
        """The parts that are trained for a projection [N, K]."""
        return {"a": (self.rank, k), "b": (n, self.rank)}

    def group(self, part: str, size: int) -> Group:
        """The optimizer's group of a part, of all projections together."""
        return Group(part, size)

    def smaller(self) -> dict[str, Any]:
        return {"rank": max(1, self.rank // 2)}

    def check_shapes(self, shapes: Shapes) -> None:
        check_rank(shapes, self.rank)

    def parameters(self, shapes: Shapes) -> list[Group]:
        of_each = [self.parts(n, k) for n, k in shapes.values()]
        return [self.group(part, sum(prod(parts[part]) for parts in of_each)) for part in of_each[0]]

    @property
    def kept_width(self) -> int:
        return self.rank

    def buffers(self, tokens: int, shapes: Shapes, activations: str) -> list[Buffer]:  # noqa: ARG002
        n, k = map(max, zip(*shapes.values(), strict=True))
        return [Buffer("factor_a", (self.rank, k), "block"), Buffer("factor_b", (n, self.rank), "block"),
                Buffer("dfactor", (self.rank, max(n, k)), "block", backward=True),
                Buffer("du", (tokens, self.rank), "block", backward=True)]


@dataclass(frozen=True)
class Scaled(Factored):
    """A family with LoRA's scale."""

    size: ClassVar[tuple[str, ...]] = ("rank", "alpha")
    alpha: float = option(16.0, "The adapter is scaled by alpha / rank.", low=0.0)

    @property
    def scale(self) -> float:
        return self.alpha / self.rank


class CarvedFactored(Carved):
    """values, gradients: the parts of each projection by its name, views of the arena. is_learning: whether the pass is
    one that learns, where a family may leave something out.
    """

    family: Factored

    def __init__(self, family: Factored, shapes: Shapes, arena: Arena, ops: Backend, seed: int) -> None:
        self.family = family
        self.shapes: dict[str, tuple[int, int]] = {name: (n, k) for name, (n, k) in shapes.items()}
        self.arena = arena
        self.ops = ops
        self.values = views(family.parts, shapes, arena.flat("lora"))
        self.gradients = views(family.parts, shapes, arena.flat("dlora"))
        self.is_learning = False
        self.begin(seed)

    # ---- what a family decides ----------------------------------------------------------------------------------

    def begin(self, seed: int) -> None:
        """Sets all parts to the values with which training begins, by the seed: those of a LoRA."""
        for name, shape in self.shapes.items():
            self.set_pair(name, init_pairs({name: shape}, self.family.rank, self.family.scale, seed)[name])

    def a(self, name: str, out: Array) -> Array:  # noqa: ARG002  # a view needs no place
        """A [R, K] of a projection: in `out`, or a view of what is trained."""
        return self.values[name]["a"]

    def b(self, name: str, out: Array) -> Array:  # noqa: ARG002
        """B [N, R], likewise."""
        return self.values[name]["b"]

    def pull_a(self, name: str, da: Array) -> None:
        """Adds to the gradients of the parts that A is made of, from that of A."""
        self.gradients[name]["a"] += da

    def pull_b(self, name: str, db: Array) -> None:
        """Adds to the gradients of the parts that B is made of, from that of B."""
        self.gradients[name]["b"] += db

    def open_ranks(self, name: str) -> np.ndarray:  # noqa: ARG002
        """Which ranks are part of the adapter, bool [R]."""
        return np.ones(self.family.rank, bool)

    def set_pair(self, name: str, pair: Pair) -> None:
        """The inverse of `a` and `b`; a difference of scales is multiplied into B. Of a family that prunes, the pair
        may have fewer ranks, down to none.
        """
        self.values[name]["a"][:] = pair.a
        self.values[name]["b"][:] = pair.b * np.float32(pair.scale / self.family.scale)

    # ---- products -----------------------------------------------------------------------------------------------

    def before_pass(self, seed: int | None) -> None:
        self.is_learning = seed is not None

    def forward(self, linear: Frozen, out: Array, inp: Array, kept: Array | None, accumulate: bool) -> None:
        self.keep(linear, inp, kept)
        linear.forward(out, inp, accumulate, (kept, self._b(linear)))

    def keep(self, linear: Frozen, inp: Array, kept: Array | None) -> None:
        """kept, u [T, R] = scale * inp . a^T"""
        assert kept is not None
        self.ops.matmul_forward(kept, inp, self._a(linear), "F32", self.family.scale,
                                precision=linear.forward_precision)

    def backward(self, linear: Frozen, dinp: Array | None, dout: Array, kept: Array | None, accumulate: bool) -> None:
        """dinp (+)= dout . w + scale * (dout . b) . a; du [T, R] = scale * dout . b is for `finish`."""
        assert kept is not None
        b = self._b(linear)
        du = self.arena.view("du", dout.shape[0], self.family.rank)
        db = self._zeros(*b.shape)
        self.ops.matmul_dweight(db, dout, kept, precision=linear.precision)
        self.ops.matmul_backward(du, dout, b, "F32", self.family.scale, precision=linear.precision)
        if dinp is not None:
            linear.backward(dinp, dout, accumulate, (du, self._a(linear)))
        self.ops.synchronize()
        self.pull_b(linear.name, db)

    def finish(self, linear: Frozen, inp: Array) -> None:
        du = self.arena.view("du", inp.shape[0], self.family.rank)
        da = self._zeros(self.family.rank, inp.shape[1])
        self.ops.matmul_dweight(da, du, inp, precision=linear.precision)
        self.ops.synchronize()
        self.pull_a(linear.name, da)

    def _a(self, linear: Frozen) -> Array:
        self.ops.synchronize()
        return self.a(linear.name, self.arena.view("factor_a", self.family.rank, self.shapes[linear.name][1]))

    def _b(self, linear: Frozen) -> Array:
        self.ops.synchronize()
        return self.b(linear.name, self.arena.view("factor_b", self.shapes[linear.name][0], self.family.rank))

    def _zeros(self, *shape: int) -> Array:
        self.ops.synchronize()
        found = self.arena.view("dfactor", *shape)
        found.fill(0.0)
        return found

    # ---- the result ---------------------------------------------------------------------------------------------

    def artifact(self) -> Artifact:
        """Closed ranks are left out; where all are closed, one stays, for no adapter is empty."""
        self.ops.synchronize()
        kept = {name: self.open_ranks(name) for name in self.shapes}
        if not any(ranks.any() for ranks in kept.values()):
            next(iter(kept.values()))[0] = True
        return Artifact({name: self._pair(name, ranks) for name, ranks in kept.items() if ranks.any()})

    def _pair(self, name: str, ranks: np.ndarray) -> Pair:
        n, k = self.shapes[name]
        a = self.a(name, np.empty((self.family.rank, k), np.float32))
        b = self.b(name, np.empty((n, self.family.rank), np.float32))
        if not ranks.all():
            a = a[ranks]
            b = np.ascontiguousarray(b[:, ranks])
        return Pair(a, b, self.family.scale)

    def load(self, found: Artifact, source: str) -> None:
        pairs = found.pairs
        if not self._fits(pairs):
            raise MismatchError(f"{source} adapts other projections or has another rank than this trainer "
                                f"(rank {self.family.rank}, {len(self.shapes)} pairs)",
                                "open a trainer with its options")
        for name, (n, k) in self.shapes.items():
            none = Pair(np.zeros((0, k), np.float32), np.zeros((n, 0), np.float32), self.family.scale)
            self.set_pair(name, pairs.get(name, none))

    def _fits(self, pairs: Lora) -> bool:
        names = set(pairs)
        rank = self.family.rank
        if any((pair.b.shape[0], pair.a.shape[1]) != self.shapes.get(name) for name, pair in pairs.items()):
            return False
        if self.family.prunes:
            return all(pair.rank <= rank for pair in pairs.values())
        return names == set(self.shapes) and all(pair.rank == rank for pair in pairs.values())


def views(parts: Callable[[int, int], Parts], shapes: Shapes, flat: Array) -> dict[str, dict[str, Array]]:
    """The parts of each projection in a flat array, that holds one part after another, of all projections each."""
    found: dict[str, dict[str, Array]] = {name: {} for name in shapes}
    end = 0
    for part in parts(1, 1):
        for name, (n, k) in shapes.items():
            shape = parts(n, k)[part]
            begin = end
            end += prod(shape)
            found[name][part] = flat[begin:end].reshape(shape)
    return found
