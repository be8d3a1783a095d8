"""The gated feed-forward part: down(act(gate x) * up x). F its width."""

from __future__ import annotations

from typing import ClassVar

import numpy as np

from ..backends.arena import Buffer
from ..formats.shape import Shape
from .linear import Activations, RunShape
from .sublayer import FeedForward


class Gated(FeedForward):
    last = "ffn_down"
    inputs: ClassVar[tuple[str, ...]] = ("ffn_gate", "ffn_up")

    @classmethod
    def widths(cls, s: Shape) -> dict[str, int]:
        return {"gate": s.d_ff, "up": s.d_ff}

    @classmethod
    def buffers(cls, s: Shape, run: RunShape, tokens: int, prefix: int) -> list[Buffer]:  # noqa: ARG003
        half = run.activations
        return [Buffer("act", (tokens, s.d_ff), "block", half),
                Buffer("dact", (tokens, s.d_ff), "block", half, backward=True)]

    def forward(self, layer: int, norm: np.ndarray, k: Activations) -> np.ndarray:
        of = self.of
        act = of.arena.view("act", len(norm), k["gate"].shape[1])
        self._inputs(layer, norm, k)
        of.ops.glu_forward(act, k["gate"], k["up"], of.shape.act)
        return act

    def backward(self, layer: int, dinp: np.ndarray | None, dout: np.ndarray, norm: np.ndarray, k: Activations,
                 deepest: int) -> None:
        of = self.of
        s = of.shape
        act = of.arena.view("act", len(norm), k["gate"].shape[1])
        dact = of.arena.view("dact", len(norm), k["gate"].shape[1])
        of.linear.backward(dact if deepest > 0 else None, dout, layer, self.last, k)
        if deepest == 0:
            of.ops.glu_forward(act, k["gate"], k["up"], s.act)
            of.linear.finish(act, layer, self.last)
            return
        of.ops.glu_backward(dact, k["up"], act, dact, k["gate"], k["up"], s.act)  # k["up"] becomes dup; fills act
        of.linear.finish(act, layer, self.last)
        self._inputs_backward(layer, dinp, dact, k["up"], norm, k)

    def _inputs(self, layer: int, norm: np.ndarray, k: Activations) -> None:
        """Sets k["gate"] and k["up"]."""
        self.of.linear.forward(k["gate"], norm, layer, "ffn_gate", k)
        self.of.linear.forward(k["up"], norm, layer, "ffn_up", k)

    def _inputs_backward(self, layer: int, dinp: np.ndarray | None, dgate: np.ndarray, dup: np.ndarray,
                         norm: np.ndarray, k: Activations) -> None:
        """dinp [N, D] = the gradient of the normed input from those of gate and up."""
        linear = self.of.linear
        linear.backward(dinp, dgate, layer, "ffn_gate", k)
        linear.finish(norm, layer, "ffn_gate")
        linear.backward(dinp, dup, layer, "ffn_up", k, accumulate=True)
        linear.finish(norm, layer, "ffn_up")
