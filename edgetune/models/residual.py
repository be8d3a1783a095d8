"""The sums of a decoder's residual stream: each adds a sublayer's output, normed and adapted where it has that.

`k` are the block's activations; T tokens, D the model's width.
"""

from __future__ import annotations

import numpy as np

from ..backends.arena import Arena
from ..backends.base import Backend
from .linear import Activations, Projections
from .norms import Norms
from .sublayer import Part, Sublayer


class Residual:
    """The sums, in a decoder's arena. has_norms: whether a norm follows each sublayer."""

    def __init__(self, ops: Backend, arena: Arena, linear: Projections, norms: Norms, has_norms: bool) -> None:
        self._ops = ops
        self._arena = arena
        self._linear = linear
        self._norms = norms
        self._has_norms = has_norms

    def keeps_output(self, layer: int, part: Part) -> bool:
        """Whether the sublayer's output is kept for backward."""
        return self._has_norms or self._linear.adapts(f"blk.{layer}.{part.name}")

    def forward(self, x: np.ndarray, inner: np.ndarray, k: Activations, layer: int, sublayer: Sublayer) -> None:
        """x [T, D] += the sublayer's output, of what its last projection takes."""
        part = sublayer.part
        if not self.keeps_output(layer, part):
            sublayer.project(x, inner, layer, k, accumulate=True)
            return
        sublayer.project(k[f"{part.kept}_out"], inner, layer, k)
        out = self._output(k, layer, part)
        name = f"blk.{layer}.{part.name}"
        if self._linear.adapts(name):
            self._linear.adapter.sublayer_forward(name, out)
        self._ops.add(x.reshape(-1), out.reshape(-1))

    def backward(self, dx: np.ndarray, k: Activations, layer: int, part: Part) -> np.ndarray:
        """The gradient [T, D] of the projection's output, from that of the sum: dx itself if nothing follows it."""
        if not self.keeps_output(layer, part):
            return dx
        raw = k[f"{part.kept}_out"]
        dout = dx
        draw = self._arena.view("dpost", *dx.shape)
        name = f"blk.{layer}.{part.name}"
        if self._linear.adapts(name):
            self._ops.copy(draw, dx)
            self._linear.adapter.sublayer_backward(name, draw, self._output(k, layer, part))
            dout = draw
        if self._has_norms:
            self._norms.backward(draw, dout, raw, k[f"rstd_{part.kept}"], f"blk.{layer}.{part.post}")
        return draw

    def _output(self, k: Activations, layer: int, part: Part) -> np.ndarray:
        """The sublayer's output [T, D] without the adapter, in a buffer that is free then, from its projection's."""
        raw = k[f"{part.kept}_out"]
        out = self._arena.view("dnorm", *raw.shape)
        if self._has_norms:
            self._norms.forward(out, k[f"rstd_{part.kept}"], raw, f"blk.{layer}.{part.post}")
        else:
            self._ops.copy(out, raw)
        return out
