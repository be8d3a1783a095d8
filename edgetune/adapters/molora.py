"""MoLoRA: a mixture of LoRAs in each projection, W x + scale * sum_e p_e(x) B_e (A_e x), where a router weighs the
experts of each token, p(x) = softmax(router x) (Zadouri et al. 2023, arXiv:2309.05444).

All experts answer for every token: none is left out, and no term of the loss balances them. The update depends on the
token, so that llama.cpp cannot apply it: edgetune's own engine answers. Letters: T tokens, N outputs, K inputs of a
projection, E experts of rank R.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

from ..backends.arena import Arena, Buffer
from ..backends.base import Array, Backend
from ..options import option
from .arrays import ArrayFamily, CarvedArrays
from .base import OWN_ENGINE, Carved, Frozen, Shapes, register

SPREAD = 0.02  # standard deviation of A and of the router at the start; B is 0


@register
@dataclass(frozen=True)
class Molora(ArrayFamily):
    """Several small LoRAs in each projection; a router weighs them for each token."""

    name: ClassVar[str] = "molora"
    served_by: ClassVar[str] = OWN_ENGINE
    size: ClassVar[tuple[str, ...]] = ("experts", "rank", "alpha")
    experts: int = option(4, "LoRAs E of every trained projection.", low=2, high=64)
    rank: int = option(4, "Rank R of each of them.", low=1, high=256)
    alpha: float = option(16.0, "The adapter is scaled by alpha / rank.", low=0.0)

    @property
    def width(self) -> int:
        """Ranks of all experts together."""
        return self.experts * self.rank

    @property
    def kept_width(self) -> int:
        return self.width + self.experts

    def smaller(self) -> dict[str, Any]:
        return {"experts": max(2, self.experts // 2), "rank": max(1, self.rank // 2)}

    def arrays(self, shapes: Shapes) -> dict[str, tuple[int, ...]]:
        """One matrix for what reads the input, A of all experts and the router below; and B of all experts."""
        found: dict[str, tuple[int, ...]] = {}
        for name, (n, k) in shapes.items():
            found |= {f"{name}.in": (self.kept_width, k), f"{name}.out": (n, self.width)}
        return found

    def buffers(self, tokens: int, shapes: Shapes, activations: str) -> list[Buffer]:  # noqa: ARG002
        return [Buffer("mixed", (tokens, self.width), "block"),
                Buffer("dread", (tokens, self.kept_width), "block", backward=True)]

    def carve(self, shapes: Shapes, arena: Arena, ops: Backend, seed: int) -> Carved:
        return CarvedMolora(self, shapes, arena, ops, seed)


class CarvedMolora(CarvedArrays):
    """kept [T, E R + E]: u_e = A_e x of all experts, then p."""

    def __init__(self, family: Molora, shapes: Shapes, arena: Arena, ops: Backend, seed: int) -> None:
        super().__init__(family, shapes, arena)
        self.family = family
        self.scale = family.alpha / family.rank
        self.arena = arena
        self.ops = ops
        rng = np.random.default_rng(seed)
        for name, array in self.values.items():
            array[:] = SPREAD * rng.standard_normal(array.shape) if name.endswith(".in") else 0

    def keep(self, linear: Frozen, inp: Array, kept: Array | None) -> None:
        assert kept is not None
        self.ops.matmul_forward(kept, inp, self.values[f"{linear.name}.in"], "F32", precision=linear.forward_precision)
        self.ops.synchronize()
        _, p = self._parts(kept)
        p[:] = np.exp(p - p.max(1, keepdims=True))
        p /= p.sum(1, keepdims=True)

    def forward(self, linear: Frozen, out: Array, inp: Array, kept: Array | None, accumulate: bool) -> None:
        self.keep(linear, inp, kept)
        linear.forward(out, inp, accumulate, (self._mixed(kept), self.values[f"{linear.name}.out"]))

    def backward(self, linear: Frozen, dinp: Array | None, dout: Array, kept: Array | None, accumulate: bool) -> None:
        """z_e = scale p_e u_e; dz = scale * dout . B; du_e = p_e dz_e; dp_e = <dz_e, u_e>; and the gradient of the
        router's logits l is dl_e = p_e (dp_e - sum_f p_f dp_f). `finish` needs du and dl.
        """
        assert kept is not None
        b = self.values[f"{linear.name}.out"]
        z = self._mixed(kept)
        self.ops.matmul_dweight(self.gradients[f"{linear.name}.out"], dout, z, precision=linear.precision)
        self.ops.synchronize()
        self.ops.matmul_backward(z, dout, b, "F32", self.scale, precision=linear.precision)
        self.ops.synchronize()
        u, p = self._parts(kept)
        dz = z.reshape(u.shape)
        dread = self.arena.view("dread", *kept.shape)
        du, dlogits = self._parts(dread)
        np.multiply(dz, p[:, :, None], out=du)
        dp = np.einsum("ter,ter->te", dz, u)
        dlogits[:] = p * (dp - (p * dp).sum(1, keepdims=True))
        if dinp is not None:
            linear.backward(dinp, dout, accumulate, (dread, self.values[f"{linear.name}.in"]))

    def finish(self, linear: Frozen, inp: Array) -> None:
        dread = self.arena.view("dread", inp.shape[0], self.family.kept_width)
        self.ops.matmul_dweight(self.gradients[f"{linear.name}.in"], dread, inp, precision=linear.precision)

    def _mixed(self, kept: Array | None) -> Array:
        """z [T, E R]"""
        assert kept is not None
        self.ops.synchronize()
        u, p = self._parts(kept)
        z: Array = self.arena.view("mixed", len(kept), self.family.width)
        np.multiply(u, (p * np.float32(self.scale))[:, :, None], out=z.reshape(u.shape))
        return z

    def _parts(self, read: Array) -> tuple[Array, Array]:
        """Views [T, E, R] and [T, E] of what [T, E R + E] holds."""
        family = self.family
        by_rank = read.strides[1] * family.rank
        ranks = np.lib.stride_tricks.as_strided(read, (len(read), family.experts, family.rank),
                                                (read.strides[0], by_rank, read.strides[1]))
        return ranks, read[:, family.width:]
