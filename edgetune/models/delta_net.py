"""The gated delta net of Qwen3.5: heads with a state that each token changes and reads (formulas: native/delta.h).

    q, k, v = SiLU(conv(attn_qkv x)), o = delta rule(q, k, v, ssm_beta x, ssm_alpha x)
    out = ssm_out(norm(o) * SiLU(attn_gate x))

States are kept at the ends of pieces of tokens alone (data/packing.py), so that what training takes is small; backward
makes those between them again. H heads of values, G of queries and keys, C their width.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from ..backends.arena import Buffer
from ..data.packing import COLUMNS, PIECE
from ..formats.kinds import delta_channels
from ..formats.shape import Shape
from .linear import Activations, RunShape
from .recurrent import STATE, Recurrent
from .states import BEGIN, END, SLOT, SOURCE, States

if TYPE_CHECKING:
    from ..data.packing import Batch

QKV = "attn_qkv"
GATE = "attn_gate"
FLOPS = 9  # a token and value of the state: it decays, two products read it, one changes it


class DeltaNet(Recurrent):
    inputs = (QKV, GATE)
    inner = "delta_out"
    backward_share = 4.0

    @classmethod
    def channels(cls, s: Shape) -> int:
        return delta_channels(s)

    @classmethod
    def widths(cls, s: Shape) -> dict[str, int]:
        r = s.recurrent
        return {"delta_qkv": delta_channels(s), "delta_gate": r.inner, "delta_read": r.inner, "delta_out": r.inner,
                "rstd_delta": r.heads, "p_alpha": r.heads, "p_beta": r.heads, "states": state_width(s)}

    @classmethod
    def buffers(cls, s: Shape, run: RunShape, tokens: int, prefix: int) -> list[Buffer]:
        half = run.activations
        return [*super().buffers(s, run, tokens, prefix),
                *(Buffer(name, (tokens, width), "block", half, backward=True)
                  for name, width in (("dconvolved", delta_channels(s)), ("ddelta_qkv", delta_channels(s)),
                                      ("ddelta", s.recurrent.inner))),
                Buffer("dstates", (tokens, state_width(s)), "block", backward=True),
                *(Buffer(name, (tokens, s.recurrent.heads), "block", backward=True) for name in ("dalpha", "dbeta"))]

    @classmethod
    def frozen_weights(cls, s: Shape) -> int:
        return 2 * s.recurrent.heads * s.d_model

    @classmethod
    def flops(cls, s: Shape, layer: int, lengths: Sequence[int]) -> int:  # noqa: ARG003
        """FLOP of alpha and beta, the convolution and the states."""
        r = s.recurrent
        return sum(lengths) * (2 * cls.frozen_weights(s) + 2 * r.taps * delta_channels(s) + FLOPS * r.inner * r.state)

    def forward(self, layer: int, norm: np.ndarray, batch: Batch) -> None:
        of = self.of
        _, k, _ = of.kept_of(layer, batch)
        of.linear.forward(k["delta_gate"], norm, layer, GATE, k)
        for name in ("alpha", "beta"):
            weight = of.weights[f"blk.{layer}.ssm_{name}.weight"]
            of.ops.matmul_forward(k[f"p_{name}"], norm, weight.data, weight.format)
        of.linear.forward(k["delta_qkv"], norm, layer, QKV, k)
        if of.cached and of.cached.states:
            self._continue(layer, k, of.cached.states)
        else:
            placed = of.place(batch)
            rows = self.convolved(layer, k["delta_qkv"], placed.before)
            self._pass(layer, k, k["states"], rows, placed.before, placed.pieces)
        of.norms.forward(k["delta_out"], k["rstd_delta"], k["delta_read"], f"blk.{layer}.ssm_norm")
        of.ops.glu_forward(k["delta_out"], k["delta_gate"], k["delta_out"], "silu")

    def _continue(self, layer: int, k: Activations, states: States) -> None:
        """The same after earlier passes, whose states it changes."""
        rows = self.convolved_on(layer, k["delta_qkv"], states)
        pieces = np.zeros((len(states.runs), COLUMNS), np.int32)
        pieces[:, :2] = states.runs[:, (BEGIN, END)]
        pieces[:, 3:] = states.runs[:, (SOURCE, SLOT)]
        self._pass(layer, k, states.of(layer, STATE), rows, states.before, pieces)

    def _pass(self, layer: int, k: Activations, states: np.ndarray, rows: np.ndarray, before: np.ndarray,
              pieces: np.ndarray) -> None:
        """Sets k["delta_read"] and states."""
        a, dt = self._decay(layer)
        self.of.ops.delta_forward(self._heads(k["delta_read"]), states, self._heads(rows), k["p_beta"], k["p_alpha"], a,
                                  dt, before, pieces, self.of.shape.norm_eps, self.of.run.precision)

    def backward(self, layer: int, dinp: np.ndarray | None, dinner: np.ndarray, norm: np.ndarray, batch: Batch) -> None:
        of = self.of
        t = batch.tokens.size
        _, k, _ = of.kept_of(layer, batch)
        placed = of.place(batch)
        grad = of.arena.view("ddelta", t, of.shape.recurrent.inner)
        of.norms.forward(grad, k["rstd_delta"], k["delta_read"], f"blk.{layer}.ssm_norm")
        of.ops.glu_backward(dinner, grad, k["delta_out"], dinner, k["delta_gate"], grad, "silu")  # dinner: of the gate
        of.norms.backward(grad, grad, k["delta_read"], k["rstd_delta"], f"blk.{layer}.ssm_norm")
        of.linear.backward(dinp, dinner, layer, GATE, k)
        of.linear.finish(norm, layer, GATE)
        channels = delta_channels(of.shape)
        drows, dqkv = (of.arena.view(name, t, channels) for name in ("dconvolved", "ddelta_qkv"))
        dbeta, dalpha = (of.arena.view(name, t, of.shape.recurrent.heads) for name in ("dbeta", "dalpha"))
        rows = self._heads(self.convolved(layer, k["delta_qkv"], placed.before))
        a, dt = self._decay(layer)
        of.ops.delta_backward(self._heads(drows), dbeta, dalpha, of.arena.view("dstates", *k["states"].shape),
                              self._heads(grad), rows, k["p_beta"], k["p_alpha"], a, dt, k["states"], placed.before,
                              placed.pieces, of.shape.norm_eps, of.run.precision)
        self.convolved_backward(layer, dqkv, drows, k["delta_qkv"], placed.before)
        of.linear.backward(dinp, dqkv, layer, QKV, k, accumulate=True)
        of.linear.finish(norm, layer, QKV)
        if dinp is not None:
            for name, gate in (("beta", dbeta), ("alpha", dalpha)):
                weight = of.weights[f"blk.{layer}.ssm_{name}.weight"]
                of.ops.matmul_backward(dinp, gate, weight.data, weight.format, accumulate=True)

    def _decay(self, layer: int) -> tuple[np.ndarray, np.ndarray]:
        """a and dt, [H]: a state decays by e^(a ln(1 + e^(alpha + dt)))."""
        return self.of.vectors[f"blk.{layer}.ssm_a"], self.of.vectors[f"blk.{layer}.ssm_dt.bias"]

    def _heads(self, array: np.ndarray) -> np.ndarray:
        """[T, heads, C] of [T, heads * C]."""
        heads: np.ndarray = array.reshape(len(array), -1, self.of.shape.recurrent.state)
        return heads


def state_width(s: Shape) -> int:
    """Values a token of the kept states: one state in PIECE tokens."""
    return -(-s.recurrent.inner * s.recurrent.state // PIECE)
