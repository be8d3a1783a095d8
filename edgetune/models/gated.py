"""The gated feed-forward part: down(act(gate x) * up x). F its width."""

from __future__ import annotations

from typing import ClassVar

import numpy as np

from ..backends.arena import Buffer
from ..formats.shape import Shape
from .linear import Activations, RunShape
from .sublayer import FeedForward

GATE_UP = "ffn_up"  # phi3's name for the fused matrix of gate and up


class Gated(FeedForward):
    """kept: names of gate and up in `k`; work: of their product and its gradient, in the arena. adds: whether backward
    adds to a gradient of the normed input.
    """

    last = "ffn_down"
    inputs: ClassVar[tuple[str, ...]] = ("ffn_gate", "ffn_up")
    kept: ClassVar[tuple[str, str]] = ("gate", "up")
    work: ClassVar[tuple[str, str]] = ("act", "dact")
    adds: ClassVar[bool] = False

    @classmethod
    def width(cls, s: Shape) -> int:
        return s.d_ff

    @classmethod
    def widths(cls, s: Shape) -> dict[str, int]:
        return dict.fromkeys(cls.kept, cls.width(s))

    @classmethod
    def buffers(cls, s: Shape, run: RunShape, tokens: int, prefix: int) -> list[Buffer]:  # noqa: ARG003
        half = run.activations
        act, dact = cls.work
        return [Buffer(act, (tokens, cls.width(s)), "block", half),
                Buffer(dact, (tokens, cls.width(s)), "block", half, backward=True)]

    def forward(self, layer: int, norm: np.ndarray, k: Activations) -> np.ndarray:
        of = self.of
        gate, up = self._kept(k)
        act = of.arena.view(self.work[0], *gate.shape)
        self._inputs(layer, norm, k)
        of.ops.glu_forward(act, gate, up, of.shape.act)
        return act

    def backward(self, layer: int, dinp: np.ndarray | None, dout: np.ndarray, norm: np.ndarray, k: Activations,
                 deepest: int) -> None:
        of = self.of
        s = of.shape
        gate, up = self._kept(k)
        act, dact = (of.arena.view(name, *gate.shape) for name in self.work)
        of.linear.backward(dact if deepest > 0 else None, dout, layer, self.last, k)
        if deepest == 0:
            of.ops.glu_forward(act, gate, up, s.act)
            of.linear.finish(act, layer, self.last)
            return
        of.ops.glu_backward(dact, up, act, dact, gate, up, s.act)  # up becomes dup; fills act
        of.linear.finish(act, layer, self.last)
        self._inputs_backward(layer, dinp, dact, up, norm, k)

    def _kept(self, k: Activations) -> tuple[np.ndarray, np.ndarray]:
        """Gate and up, [N, F]."""
        gate, up = self.kept
        return k[gate], k[up]

    def _inputs(self, layer: int, norm: np.ndarray, k: Activations) -> None:
        """Sets gate and up."""
        for out, name in zip(self._kept(k), self.inputs, strict=True):
            self.of.linear.forward(out, norm, layer, name, k)

    def _inputs_backward(self, layer: int, dinp: np.ndarray | None, dgate: np.ndarray, dup: np.ndarray,
                         norm: np.ndarray, k: Activations) -> None:
        """dinp [N, D] = the gradient of the normed input from those of gate and up."""
        linear = self.of.linear
        gate, up = self.inputs
        linear.backward(dinp, dgate, layer, gate, k, accumulate=self.adds)
        linear.finish(norm, layer, gate)
        linear.backward(dinp, dup, layer, up, k, accumulate=True)
        linear.finish(norm, layer, up)


class FusedGated(Gated):
    inputs = (GATE_UP,)
    repeats = False

    @classmethod
    def buffers(cls, s: Shape, run: RunShape, tokens: int, prefix: int) -> list[Buffer]:
        return [*super().buffers(s, run, tokens, prefix),
                Buffer("gate_up", (tokens, 2 * s.d_ff), "block", run.activations)]

    def _inputs(self, layer: int, norm: np.ndarray, k: Activations) -> None:
        of = self.of
        whole = of.arena.view("gate_up", len(norm), 2 * of.shape.of(layer).d_ff)
        of.linear.forward(whole, norm, layer, GATE_UP, k)
        of.ops.synchronize()
        k["gate"][:], k["up"][:] = np.split(whole, 2, axis=1)

    def _inputs_backward(self, layer: int, dinp: np.ndarray | None, dgate: np.ndarray, dup: np.ndarray,
                         norm: np.ndarray, k: Activations) -> None:
        of = self.of
        whole = of.arena.view("gate_up", len(norm), 2 * of.shape.of(layer).d_ff)
        of.ops.synchronize()
        np.concatenate((dgate, dup), axis=1, out=whole)
        of.linear.backward(dinp, whole, layer, GATE_UP, k)
        of.linear.finish(norm, layer, GATE_UP)
