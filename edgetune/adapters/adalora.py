"""AdaLoRA (Zhang et al. 2023, arXiv:2303.10512): W x + scale * P (E * (Q x)), where training moves ranks to the
projections that need them most. Its product begins small and needs eight times LoRA's rate, which `--lr auto` gives.

A triplet is a rank of a projection: a row of Q, a value of E, a column of P. Its importance is a smoothed |w dL/dw| of
its values, times a smoothed distance of that from its mean. The budget of ranks falls by a cubic schedule, and E of the
least important triplets becomes 0; such a triplet may return while the budget still falls. A penalty keeps the
rows of Q and the columns of P nearly orthonormal. All numbers are those of PEFT, with which tests compare.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, ClassVar, TypeVar

import numpy as np

from ..backends.arena import Arena, Buffer
from ..backends.base import Array, Backend
from ..errors import UsageError
from ..options import option
from .base import Shapes, register
from .factored import CarvedFactored, Parts, Scaled, views
from .lora import Pair

T = TypeVar("T", bound="AdaLora")
SPREAD = 0.02  # standard deviation of P and Q at the start


@register
@dataclass(frozen=True)
class AdaLora(Scaled):
    """LoRA with a budget of ranks that moves to the projections where they matter most."""

    name: ClassVar[str] = "adalora"
    prunes: ClassVar[bool] = True
    rate: ClassVar[float] = 8.0  # P and E begin small, and their product grows slowly: docs/results/training.md
    rank: int = option(12, "Rank of every projection at the start.", low=1, common=True)
    target_rank: int = option(8, "Mean rank of a projection that is left at the end.", low=1, common=True)
    prune_from: float = option(0.15, "Share of the steps after which the budget of ranks begins to fall.", low=0.0,
                               high=1.0)
    prune_until: float = option(0.65, "Share of the steps after which it stays.", low=0.0, high=1.0)
    prune_every: int = option(10, "Steps between two choices of ranks.", low=1)
    sensitivity_decay: float = option(0.85, "Smoothing of a value's importance.", low=0.0, high=0.9999)
    uncertainty_decay: float = option(0.85, "Smoothing of the importance's own changes.", low=0.0, high=0.9999)
    orthogonality: float = option(0.1, "Weight of the penalty on P and Q that are not orthonormal.", low=0.0)

    def check(self: T) -> T:
        super().check()
        for name, value, limit in (("target-rank", self.target_rank, self.rank),
                                   ("prune-from", self.prune_from, self.prune_until)):
            if value > limit:
                raise UsageError(f"{name} is {value:g}, the most is {limit:g}", f"lower --{name}")
        return self

    def smaller(self) -> dict[str, Any]:
        return {"rank": max(self.target_rank, self.rank // 2)}

    def parts(self, n: int, k: int) -> Parts:
        return {"q": (self.rank, k), "p": (n, self.rank), "e": (self.rank,)}

    def buffers(self, tokens: int, shapes: Shapes, activations: str) -> list[Buffer]:
        return [*super().buffers(tokens, shapes, activations),
                Buffer("gram", (self.rank, self.rank), "block", backward=True)]

    def state(self, shapes: Shapes) -> list[Buffer]:
        n = sum(group.size for group in self.parameters(shapes))
        return [Buffer("sensitivity", (n,), "run"), Buffer("uncertainty", (n,), "run"),
                Buffer("left", (self.rank * len(shapes),), "run")]

    def carve(self, shapes: Shapes, arena: Arena, ops: Backend, seed: int) -> CarvedAdaLora:
        return CarvedAdaLora(self, shapes, arena, ops, seed)

    def budget(self, step: int, total: int) -> tuple[float, bool]:
        """The share of the ranks above the target's that is left after a step, and whether ranks are chosen then."""
        first = round(self.prune_from * total)
        last = max(1, round(self.prune_until * total))
        if step >= last:
            return 0.0, step == last
        if step <= first:
            return 1.0, False
        return (1 - (step - first) / (last - first)) ** 3, step % self.prune_every == 0


class CarvedAdaLora(CarvedFactored):
    """left: 1 of each triplet that the last choice of ranks left, [R] by projection."""

    family: AdaLora

    def begin(self, seed: int) -> None:
        self.sensitivity = views(self.family.parts, self.shapes, self.arena.flat("sensitivity"))
        self.uncertainty = views(self.family.parts, self.shapes, self.arena.flat("uncertainty"))
        self.left = self.arena.flat("left").reshape(len(self.shapes), self.family.rank)
        for name in ("sensitivity", "uncertainty"):
            self.arena.flat(name).fill(0.0)
        self.left.fill(1.0)
        for name, parts in self.values.items():
            rng = np.random.default_rng([seed, *name.encode()])
            for part in ("q", "p"):
                parts[part][:] = rng.normal(0.0, SPREAD, parts[part].shape)
            parts["e"].fill(0.0)

    def a(self, name: str, out: Array) -> Array:
        parts = self.values[name]
        return np.multiply(parts["e"][:, None], parts["q"], out=out)

    def b(self, name: str, out: Array) -> Array:  # noqa: ARG002
        return self.values[name]["p"]

    def pull_a(self, name: str, da: Array) -> None:
        parts = self.values[name]
        self.gradients[name]["e"] += np.einsum("rk,rk->r", da, parts["q"])
        self.gradients[name]["q"] += np.multiply(parts["e"][:, None], da, out=da)

    def pull_b(self, name: str, db: Array) -> None:
        self.gradients[name]["p"] += db

    def open_ranks(self, name: str) -> np.ndarray:
        return np.not_equal(self.values[name]["e"], 0)

    def set_pair(self, name: str, pair: Pair) -> None:
        """The singular value decomposition of the pair's product; ranks beyond the pair's own keep P and Q of the
        start, and E is 0.
        """
        parts = self.values[name]
        parts["e"].fill(0.0)
        if not pair.rank:
            return
        basis_b, of_b = np.linalg.qr(pair.b)
        basis_a, of_a = np.linalg.qr(pair.a.T)
        u, singular, v = np.linalg.svd(of_b @ of_a.T, full_matrices=False)
        count = singular.size
        parts["p"][:, :count] = basis_b @ u
        parts["q"][:count] = v @ basis_a.T
        parts["e"][:count] = singular * np.float32(pair.scale / self.family.scale)

    # ---- the penalty --------------------------------------------------------------------------------------------

    def before_update(self) -> None:
        """Adds the gradient of orthogonality * the mean of |P^T P - I| and |Q Q^T - I| over all P and Q."""
        if not self.family.orthogonality:
            return
        weight = self.family.orthogonality / (2 * len(self.shapes))
        rank = self.family.rank
        gram = self.arena.view("gram", rank, rank)
        for name, parts in self.values.items():
            p, q = parts["p"], parts["q"]
            found = self.gradients[name]
            self.ops.synchronize()
            gram.fill(0.0)
            self.ops.matmul_dweight(gram, p, p)
            self.ops.matmul_forward(found["p"], p, gram, "F32", self._slope(gram, weight), True)
            self.ops.matmul_forward(gram, q, q, "F32")
            self.ops.matmul_backward(found["q"], gram, q, "F32", self._slope(gram, weight), True)
        self.ops.synchronize()

    def _slope(self, gram: Array, weight: float) -> float:
        """Subtracts I from `gram`; d(weight * |M|) = slope * M P, with M that difference."""
        self.ops.synchronize()
        gram[np.diag_indices(len(gram))] -= 1
        norm = math.sqrt(float(np.square(gram, dtype=np.float64).sum()))
        return 2 * weight / norm if norm else 0.0

    # ---- the budget ---------------------------------------------------------------------------------------------

    def after_step(self, step: int, total: int, lr: float) -> None:  # noqa: ARG002
        self.ops.synchronize()
        above, chooses = self.family.budget(step, total)
        if above:
            self._observe()
        if chooses:
            ranks = self.family.rank * len(self.shapes)
            target = self.family.target_rank * len(self.shapes)
            self._choose(int((ranks - target) * above + target))
        if chooses or not above:
            for left, parts in zip(self.left, self.values.values(), strict=True):
                parts["e"][left == 0] = 0

    def _observe(self) -> None:
        """Smooths the importance of each value, by the gradient of the step and the value after it."""
        fast, slow = np.float32(self.family.sensitivity_decay), np.float32(self.family.uncertainty_decay)
        for name, parts in self.values.items():
            for part, value in parts.items():
                mean, change = self.sensitivity[name][part], self.uncertainty[name][part]
                importance = np.abs(value * self.gradients[name][part])
                mean *= fast
                mean += (1 - fast) * importance
                change *= slow
                change += (1 - slow) * np.abs(importance - mean)

    def _choose(self, budget: int) -> None:
        """Leaves the `budget` most important triplets of all projections."""
        scores = np.stack([self._scores(name) for name in self.shapes])
        self.left.fill(1.0)
        self.left.reshape(-1)[np.argsort(scores, axis=None, kind="stable")[:scores.size - budget]] = 0

    def _scores(self, name: str) -> np.ndarray:
        """The importance of each triplet of a projection, [R]."""
        of = {part: mean * self.uncertainty[name][part] for part, mean in self.sensitivity[name].items()}
        return np.asarray(of["e"] + of["q"].mean(1) + of["p"].mean(0))
