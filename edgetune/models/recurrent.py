"""Mixers whose heads have a state, which each token changes and reads, after a convolution of a few tokens: the gated
delta net and Mamba 2.

A branch begins with its parent's state and last tokens, a document with zeros. Channels are what the convolution takes
and gives of each token: SiLU(bias + sum over the last L tokens of their weights and inputs).
"""

from __future__ import annotations

from abc import abstractmethod

import numpy as np

from ..backends.arena import Buffer
from ..data.packing import COLUMNS
from ..formats.shape import Shape
from .linear import RunShape
from .states import States
from .sublayer import Mixer

STATE_CONV = "ssm_conv1d"
STATE = "recurrent_state"  # arrays that answers keep
LAST = "recurrent_last"
CONTINUED = ("continued_rows", "continued_convolved")


class Recurrent(Mixer):
    last = "ssm_out"
    on_cpu_alone = True
    repeats = False

    @classmethod
    @abstractmethod
    def channels(cls, s: Shape) -> int:
        """Channels of the convolution."""

    @classmethod
    def first(cls, s: Shape) -> int:  # noqa: ARG003
        """The column of its rows at which they begin."""
        return 0

    @classmethod
    def inner_width(cls, s: Shape) -> int:
        return s.recurrent.inner

    @classmethod
    def buffers(cls, s: Shape, run: RunShape, tokens: int, prefix: int) -> list[Buffer]:  # noqa: ARG003
        channels = cls.channels(s)
        return [Buffer("before", (tokens,), "step", "int32"), Buffer("pieces", (tokens, COLUMNS), "step", "int32"),
                Buffer("convolved", (tokens, channels), "block", run.activations),
                Buffer("conv_sums", (tokens, channels), "block", backward=True)]

    @classmethod
    def state(cls, s: Shape) -> dict[str, tuple[int, ...]]:
        r = s.recurrent
        return {LAST: (r.taps - 1, cls.channels(s)), STATE: (r.inner * r.state,)}

    @classmethod
    def answer_buffers(cls, s: Shape, tokens: int, runs: int, activations: str) -> list[Buffer]:
        rows = runs * (s.recurrent.taps - 1) + tokens
        return [Buffer(name, (rows, cls.channels(s)), "block", activations) for name in CONTINUED]

    def convolved(self, layer: int, rows: np.ndarray, before: np.ndarray) -> np.ndarray:
        """[T, channels]"""
        out = self.of.arena.view("convolved", len(rows), self.channels(self.of.shape))
        self.of.ops.causal_conv_forward(out, rows, *self._conv(layer), before, self.first(self.of.shape))
        return out

    def convolved_on(self, layer: int, rows: np.ndarray, states: States) -> np.ndarray:
        """The same after earlier passes, whose last inputs are rows before those of the tokens, and become those of the
        last tokens.
        """
        of = self.of
        tails = states.tails(of.shape.recurrent.taps)
        first, channels = self.first(of.shape), self.channels(of.shape)
        inputs = rows[:, first:first + channels]
        if not tails.count:
            out = self.convolved(layer, rows, tails.before)
        else:
            own = inputs
            inputs, out = (of.arena.view(name, tails.count + len(rows), channels) for name in CONTINUED)
            tails.load(inputs, states.of(layer, LAST))
            inputs[tails.count:] = own
            of.ops.causal_conv_forward(out, inputs, *self._conv(layer), tails.before)
        tails.store(states.of(layer, LAST), inputs)
        return out[tails.count:]

    def convolved_backward(self, layer: int, drows: np.ndarray, dconvolved: np.ndarray, rows: np.ndarray,
                           before: np.ndarray) -> None:
        """Sets the channels of drows."""
        sums = self.of.arena.view("conv_sums", *dconvolved.shape)
        self.of.ops.causal_conv_backward(drows, sums, dconvolved, rows, *self._conv(layer), before,
                                         self.first(self.of.shape))

    def _conv(self, layer: int) -> tuple[np.ndarray, np.ndarray | None]:
        """The weights of the convolution, [L, channels], of the token itself first; and its bias."""
        vectors = self.of.vectors
        return vectors[f"blk.{layer}.{STATE_CONV}.weight"], vectors.get(f"blk.{layer}.{STATE_CONV}.bias")
