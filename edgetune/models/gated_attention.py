"""Attention whose output is gated: out = attention * sigmoid(gate). A head's query and its gate are one projection, the
gate after the query. H heads, C their width.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from ..backends.arena import Buffer
from ..formats.shape import Shape
from .attention import SelfAttention
from .linear import Activations, RunShape

if TYPE_CHECKING:
    from ..data.packing import Batch

QUERY = "attn_q"


class GatedAttention(SelfAttention):
    """Queries are projected for all tokens, because gates are."""

    inner = "gated"
    repeats = False
    on_cpu_alone = True
    keeps_prefixes = False

    @classmethod
    def widths(cls, s: Shape) -> dict[str, int]:
        return {**super().widths(s), "out_gate": s.d_q, "gated": s.d_q}

    @classmethod
    def buffers(cls, s: Shape, run: RunShape, tokens: int, prefix: int) -> list[Buffer]:
        return [*super().buffers(s, run, tokens, prefix),
                Buffer("query_gate", (tokens, 2 * s.d_q), "block", run.activations)]

    def forward(self, layer: int, norm: np.ndarray, batch: Batch) -> None:
        super().forward(layer, norm, batch)
        _, k, _ = self.of.kept_of(layer, batch)
        self.of.ops.glu_forward(k["gated"], k["out_gate"], k["att"], "sigmoid")

    def backward(self, layer: int, dinp: np.ndarray | None, dinner: np.ndarray, norm: np.ndarray, batch: Batch) -> None:
        _, k, _ = self.of.kept_of(layer, batch)
        # out_gate becomes its gradient, dinner that of what is gated; gated stays as it is
        self.of.ops.glu_backward(k["out_gate"], dinner, k["gated"], dinner, k["out_gate"], k["att"], "sigmoid")
        super().backward(layer, dinp, dinner, norm, batch)

    def _inputs(self, layer: int, norm: np.ndarray, batch: Batch) -> None:
        of = self.of
        _, k, _ = of.kept_of(layer, batch)
        positions = of.place(batch).positions
        whole = self._query_gate(len(norm))
        of.linear.forward(whole.reshape(len(norm), -1), norm, layer, QUERY, k)
        of.ops.synchronize()
        query, gate = self._halves(k, ("q_raw", "out_gate"))
        query[:], gate[:] = whole[:, :, 0], whole[:, :, 1]
        self._place_heads(k["q"], k["q_raw"], layer, "q", k, positions)
        for name in "kv":
            self._project(k[name], norm, layer, name, k, positions)

    def _inputs_backward(self, layer: int, dinp: np.ndarray | None, grads: tuple[np.ndarray, ...], norm: np.ndarray,
                         batch: Batch) -> None:
        of = self.of
        _, k, _ = of.kept_of(layer, batch)
        dq, dk, dv = grads
        positions = of.place(batch).positions
        self._place_heads_backward(dq, layer, "q", k, positions)
        of.ops.synchronize()
        whole = self._query_gate(len(norm))
        gate, = self._halves(k, ("out_gate",))
        whole[:, :, 0], whole[:, :, 1] = dq, gate
        of.linear.backward(dinp, whole.reshape(len(norm), -1), layer, QUERY, k)
        of.linear.finish(norm, layer, QUERY)
        self._project_backward(dinp, dk, norm, layer, "k", k, positions)
        self._project_backward(dinp, dv, norm, layer, "v", k, positions)

    def _query_gate(self, t: int) -> np.ndarray:
        """Work space [T, H, 2, C]: each head's query and gate."""
        s = self.of.shape
        return self.of.arena.view("query_gate", t, s.n_head, 2, s.d_head)

    def _halves(self, k: Activations, names: Sequence[str]) -> list[np.ndarray]:
        """Activations as [T, H, C]."""
        s = self.of.shape
        return [k[name].reshape(-1, s.n_head, s.d_head) for name in names]
