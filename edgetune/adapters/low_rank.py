"""LoRA in training: W x + scale * B (A dropout(x)) with a frozen W.

All A are stored first, then all B, so that each is one group for the optimizer. Letters: T tokens, N outputs, K inputs,
R rank.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

from ..backends.arena import Arena, Buffer
from ..backends.base import Array, Backend
from ..errors import MismatchError
from ..options import option
from .base import NOTHING, Artifact, Carved, Family, Frozen, Group, Shapes, register, slices
from .lora import Pair, check_rank, init_pairs, scale_of


@register
@dataclass(frozen=True)
class LoraFamily(Family):
    """Low-rank adaptation, after Hu et al. 2021 (arXiv:2106.09685)."""

    name: ClassVar[str] = "lora"
    takes_experts: ClassVar[bool] = True
    size: ClassVar[tuple[str, ...]] = ("rank", "alpha", "rslora")
    rank: int = option(8, "LoRA rank R of every trained projection.", low=1, common=True)
    alpha: float = option(16.0, "LoRA alpha; the adapter is scaled by alpha / rank.", low=0.0)
    dropout: float = option(0.0, "Dropout on the input of the adapter, as a probability.", low=0.0, high=0.95)
    rslora: bool = option(False, "Scale by alpha / sqrt(rank) instead (rsLoRA, Kalajdzievski 2023).")
    lora_plus: float = option(1.0, "Learning rate of B as a multiple of A's (LoRA+, Hayou et al. 2024; try 16 with "
                              "half of the rate, or an eighth).", low=0.01, high=1000.0)

    @property
    def scale(self) -> float:
        return scale_of(self.alpha, self.rank, self.rslora)

    def smaller(self) -> dict[str, Any]:
        return {"rank": max(1, self.rank // 2)}

    def check_shapes(self, shapes: Shapes) -> None:
        check_rank(shapes, self.rank)

    def parameters(self, shapes: Shapes) -> list[Group]:
        return [Group("a", self.rank * sum(k for _, k in shapes.values())),
                Group("b", self.rank * sum(n for n, _ in shapes.values()), lr_scale=self.lora_plus)]

    @property
    def kept_width(self) -> int:
        return self.rank

    def buffers(self, tokens: int, shapes: Shapes, activations: str) -> list[Buffer]:
        table = [Buffer("du", (tokens, self.rank), "block", backward=True)]
        if self.dropout:
            widest = max(k for _, k in shapes.values())
            table.append(Buffer("dropped", (tokens, widest), "block", activations, backward=True))
        return table

    def carve(self, shapes: Shapes, arena: Arena, ops: Backend, seed: int) -> CarvedLora:
        return CarvedLora(self, shapes, arena, ops, seed)


@dataclass(frozen=True)
class Adapted:
    """A pair in training: views into the arena. a, da [R, K]; b, db [N, R]; delta W = scale * b @ a."""

    a: np.ndarray
    b: np.ndarray
    da: np.ndarray
    db: np.ndarray
    scale: float
    index: int  # names the dropout mask


class CarvedLora(Carved):
    """LoRA in an arena. adapted: the pairs by the name of their projection."""

    def __init__(self, family: LoraFamily, shapes: Shapes, arena: Arena, ops: Backend, seed: int) -> None:
        self.family = family
        self.arena = arena
        self.ops = ops
        self.adapted = _carve_pairs(family, shapes, arena)
        self._dropout_seed: int | None = None
        for name, shape in shapes.items():  # one at a time, so that no second copy of all pairs is in memory
            self.set_pair(name, init_pairs({name: shape}, family.rank, family.scale, seed)[name])

    def before_pass(self, seed: int | None) -> None:
        self._dropout_seed = seed if self.family.dropout else None

    @property
    def repeats(self) -> bool:
        return self._dropout_seed is None

    def forward(self, linear: Frozen, out: Array, inp: Array, kept: Array | None, accumulate: bool) -> None:
        self.keep(linear, inp, kept)
        linear.forward(out, inp, accumulate, (kept, self.adapted[linear.name].b))

    def keep(self, linear: Frozen, inp: Array, kept: Array | None) -> None:
        """kept, u [T, R] = scale * dropout(inp) . a^T"""
        assert kept is not None
        pair = self.adapted[linear.name]
        self.ops.matmul_forward(kept, self._dropped(inp, pair), pair.a, "F32", pair.scale,
                                precision=linear.forward_precision)

    def backward(self, linear: Frozen, dinp: Array | None, dout: Array, kept: Array | None, accumulate: bool) -> None:
        """dinp (+)= dout . w + scale * (dout . b) . a; db accumulates; du [T, R] = scale * dout . b is for `finish`."""
        assert kept is not None
        pair = self.adapted[linear.name]
        masked = self._dropout_seed is not None
        du = self.arena.view("du", dout.shape[0], self.family.rank)
        self.ops.matmul_dweight(pair.db, dout, kept, precision=linear.precision)
        self.ops.matmul_backward(du, dout, pair.b, "F32", pair.scale, precision=linear.precision)
        if dinp is None:
            return
        linear.backward(dinp, dout, accumulate, NOTHING if masked else (du, pair.a))
        if masked:
            through = self.arena.view("dropped", *dinp.shape)
            self.ops.matmul_backward(through, du, pair.a, "F32", precision=linear.precision)
            self.ops.dropout(dinp.reshape(-1), through.reshape(-1), self.family.dropout, self._mask(pair), True)

    def finish(self, linear: Frozen, inp: Array) -> None:
        """Accumulates da, from the du of `backward`."""
        pair = self.adapted[linear.name]
        du = self.arena.view("du", inp.shape[0], self.family.rank)
        self.ops.matmul_dweight(pair.da, du, self._dropped(inp, pair), precision=linear.precision)

    def artifact(self) -> Artifact:
        return Artifact({name: Pair(p.a, p.b, p.scale) for name, p in self.adapted.items()})

    def load(self, found: Artifact, source: str) -> None:
        pairs = found.pairs
        wanted = {name: to.a.shape for name, to in self.adapted.items()}
        if {name: pair.a.shape for name, pair in pairs.items()} != wanted:
            raise MismatchError(f"{source} adapts other projections or has another rank than this trainer "
                                f"(rank {self.family.rank}, {len(wanted)} pairs)", "open a trainer with its options")
        for name, pair in pairs.items():
            self.set_pair(name, pair)

    def set_pair(self, name: str, pair: Pair) -> None:
        """Copies a pair's values; a difference of scales is multiplied into B."""
        to = self.adapted[name]
        to.a[:] = pair.a
        to.b[:] = pair.b * np.float32(pair.scale / to.scale)

    def _dropped(self, inp: Array, pair: Adapted) -> Array:
        if self._dropout_seed is None:
            return inp
        out = self.arena.view("dropped", *inp.shape)
        self.ops.dropout(out.reshape(-1), inp.reshape(-1), self.family.dropout, self._mask(pair))
        return out

    def _mask(self, pair: Adapted) -> int:
        assert self._dropout_seed is not None
        return (self._dropout_seed * 1_000_003 + pair.index) & (2**64 - 1)


def _carve_pairs(family: LoraFamily, shapes: Shapes, arena: Arena) -> dict[str, Adapted]:
    groups = family.parameters(shapes)
    r = family.rank
    all_a, all_b = slices(groups, arena.flat("lora"))[:2]
    all_da, all_db = slices(groups, arena.flat("dlora"))[:2]
    adapted = {}
    a_start = 0
    b_start = 0
    for index, (name, (n, k)) in enumerate(shapes.items()):
        a = slice(a_start, a_start + r * k)
        b = slice(b_start, b_start + n * r)
        adapted[name] = Adapted(all_a[a].reshape(r, k), all_b[b].reshape(n, r), all_da[a].reshape(r, k),
                                all_db[b].reshape(n, r), family.scale, index)
        a_start = a.stop
        b_start = b.stop
    return adapted
