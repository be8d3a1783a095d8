"""Attention whose values are its keys as they are projected, before these are normed and rotated."""

from __future__ import annotations

import numpy as np

from ..formats.shape import Shape
from .attention import SelfAttention
from .linear import Activations


class AttentionToKeys(SelfAttention):
    inputs = ("attn_q", "attn_k")

    @classmethod
    def widths(cls, s: Shape) -> dict[str, int]:
        return {name: width for name, width in super().widths(s).items() if name != "v_raw"}

    def _keys(self, layer: int, norm: np.ndarray, k: Activations, positions: np.ndarray) -> None:
        self._project(k["k"], norm, layer, "k", k, positions)
        self.of.norms.forward(k["v"], k["rstd_v"], k["k_raw"], f"blk.{layer}.attn_v_norm")

    def _keys_backward(self, layer: int, dinp: np.ndarray | None, grads: tuple[np.ndarray, np.ndarray],
                       norm: np.ndarray, k: Activations, positions: np.ndarray) -> None:
        dk, dv = grads
        self.of.norms.backward(dv, dv, k["k_raw"], k["rstd_v"], f"blk.{layer}.attn_v_norm")
        self._project_backward(dinp, dk, norm, layer, "k", k, positions, raw=dv)
