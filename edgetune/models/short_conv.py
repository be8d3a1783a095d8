"""The gated short convolution of LFM2: out_proj(c * conv(b * x)), b, c and x = in_proj of the normed input.

A channel's convolution sees the last few tokens of the document, so that nothing leaks from one branch or row to
another. D channels.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from ..backends.arena import Buffer
from ..formats.shape import Shape
from .linear import RunShape
from .sublayer import Mixer

if TYPE_CHECKING:
    from ..data.packing import Batch

CONV = "shortconv.conv"


class ShortConv(Mixer):
    last = "shortconv.out_proj"
    inputs = ("shortconv.in_proj",)
    inner = "conv"
    on_cpu_alone = True

    @classmethod
    def inner_width(cls, s: Shape) -> int:
        return s.d_model

    @classmethod
    def widths(cls, s: Shape) -> dict[str, int]:
        return {"bcx": 3 * s.d_model, "conv": s.d_model}

    @classmethod
    def buffers(cls, s: Shape, run: RunShape, tokens: int, prefix: int) -> list[Buffer]:  # noqa: ARG003
        return [Buffer("before", (tokens,), "step", "int32"),
                Buffer("dbcx", (tokens, 3 * s.d_model), "block", run.activations, backward=True),
                Buffer("conv_sums", (tokens, s.d_model), "block", backward=True)]

    def forward(self, layer: int, norm: np.ndarray, batch: Batch) -> None:
        of = self.of
        _, k, _ = of.kept_of(layer, batch)
        of.linear.forward(k["bcx"], norm, layer, "shortconv.in_proj", k)
        of.ops.conv_forward(k["conv"], self._parts(k["bcx"]), self._weight(layer), of.place(batch).before)

    def backward(self, layer: int, dinp: np.ndarray | None, dinner: np.ndarray, norm: np.ndarray, batch: Batch) -> None:
        of = self.of
        t = batch.tokens.size
        _, k, _ = of.kept_of(layer, batch)
        grad = of.arena.view("dbcx", t, 3 * of.shape.d_model)
        of.ops.conv_backward(self._parts(grad), of.arena.view("conv_sums", t, of.shape.d_model), dinner,
                             self._parts(k["bcx"]), self._weight(layer), of.place(batch).before)
        of.linear.backward(dinp, grad, layer, "shortconv.in_proj", k)
        of.linear.finish(norm, layer, "shortconv.in_proj")

    def _parts(self, array: np.ndarray) -> np.ndarray:
        """b, c and x of each token, [T, 3, D]."""
        parts: np.ndarray = array.reshape(len(array), 3, -1)
        return parts

    def _weight(self, layer: int) -> np.ndarray:
        """[L, D], of the token itself first."""
        return self.of.vectors[f"blk.{layer}.{CONV}.weight"]
