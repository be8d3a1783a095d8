"""The gated short convolution of LFM2: out_proj(c * conv(b * x)), b, c and x = in_proj of the normed input.

A channel's convolution sees the last few tokens of the document, so that nothing leaks from one branch or row to
another. D channels.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from ..backends.arena import Buffer
from ..formats.shape import Shape
from .linear import Activations, RunShape
from .states import States
from .sublayer import Mixer

if TYPE_CHECKING:
    from ..data.packing import Batch

CONV = "shortconv.conv"
STATE = "conv"


class ShortConv(Mixer):
    last = "shortconv.out_proj"
    inputs = ("shortconv.in_proj",)
    inner = "conv"
    repeats = False
    on_cpu_alone = True

    @classmethod
    def inner_width(cls, s: Shape) -> int:
        return s.d_model

    @classmethod
    def widths(cls, s: Shape) -> dict[str, int]:
        return {"bcx": 3 * s.d_model, "conv": s.d_model}

    @classmethod
    def state(cls, s: Shape) -> dict[str, tuple[int, ...]]:
        """b and x of the last tokens that the next one sees."""
        return {STATE: (s.conv - 1, 2, s.d_model)}

    @classmethod
    def answer_buffers(cls, s: Shape, tokens: int, runs: int, activations: str) -> list[Buffer]:
        rows = runs * (s.conv - 1) + tokens
        return [Buffer("continued_bcx", (rows, 3, s.d_model), "block", activations),
                Buffer("continued_conv", (rows, s.d_model), "block", activations)]

    @classmethod
    def buffers(cls, s: Shape, run: RunShape, tokens: int, prefix: int) -> list[Buffer]:  # noqa: ARG003
        return [Buffer("before", (tokens,), "step", "int32"),
                Buffer("dbcx", (tokens, 3 * s.d_model), "block", run.activations, backward=True),
                Buffer("conv_sums", (tokens, s.d_model), "block", backward=True)]

    def forward(self, layer: int, norm: np.ndarray, batch: Batch) -> None:
        of = self.of
        _, k, _ = of.kept_of(layer, batch)
        states = of.cached.states if of.cached else None
        if states and states.tails(of.shape.conv).count:
            rows = self._continue(layer, norm, k, states)
        else:
            rows = self._parts(k["bcx"])
            of.linear.forward(k["bcx"], norm, layer, "shortconv.in_proj", k)
            of.ops.conv_forward(k["conv"], rows, self._weight(layer), of.place(batch).before)
        if states:
            states.tails(of.shape.conv).store(states.of(layer, STATE), rows[:, ::2])

    def _continue(self, layer: int, norm: np.ndarray, k: Activations, states: States) -> np.ndarray:
        """The same after earlier passes: b and x of their last tokens are rows before those of the tokens. Returns all
        rows [count + T, 3, D].
        """
        of = self.of
        tails = states.tails(of.shape.conv)
        rows = of.arena.view("continued_bcx", tails.count + len(norm), 3, of.shape.d_model)
        out = of.arena.view("continued_conv", len(rows), of.shape.d_model)
        of.linear.forward(rows[tails.count:].reshape(k["bcx"].shape), norm, layer, "shortconv.in_proj", k)
        tails.load(rows[:, ::2], states.of(layer, STATE))
        rows[:tails.count, 1] = 0
        of.ops.conv_forward(out, rows, self._weight(layer), tails.before)
        of.ops.copy(k["conv"], out[tails.count:])
        return rows

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
