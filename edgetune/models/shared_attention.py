"""Attention to the keys and values of another block (lent_keys.py)."""

from __future__ import annotations

import numpy as np

from ..formats.shape import Shape
from .attention import SelfAttention
from .linear import Activations

MADE = ("k_raw", "v_raw", "rstd_k", "rstd_v")  # the activations of who makes keys and values


class SharedAttention(SelfAttention):
    inputs = ("attn_q",)

    @classmethod
    def widths(cls, s: Shape) -> dict[str, int]:
        return {name: width for name, width in super().widths(s).items() if name not in MADE}

    def _keys(self, layer: int, norm: np.ndarray, k: Activations, positions: np.ndarray) -> None:
        """Leaves them as their owner has made them."""

    def _keys_backward(self, layer: int, dinp: np.ndarray | None, grads: tuple[np.ndarray, np.ndarray],
                       norm: np.ndarray, k: Activations, positions: np.ndarray) -> None:
        """Leaves their gradients to their owner."""
