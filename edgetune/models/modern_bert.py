"""ModernBERT on its quantized weights: forward and backward of its blocks (Warner et al. 2024, arXiv:2412.13663).

A block norms the inputs of attention and MLP, as that of a decoder, so `x` [T, D] is the residual stream. The first
block's attention reads it as it is, for the embedding is normed. Most blocks see a window around each token, and rotate
by another base than those that see everything. Gate and values of the MLP come from one projection.
"""

from __future__ import annotations

from typing import ClassVar

import numpy as np

from ..backends.arena import Arena
from ..backends.base import Backend
from ..formats.gguf import MODERN
from .base import register
from .encoder import Bert, EncoderPasses
from .linear import Activations, RunShape


@register
class ModernBert(Bert):
    architectures: ClassVar[tuple[str, ...]] = (MODERN,)

    def build(self, run: RunShape, ops: Backend, arena: Arena, streamed: int, seed: int) -> ModernBertPasses:
        return ModernBertPasses(self, run, ops, arena, streamed, seed)


class ModernBertPasses(EncoderPasses):
    def _embedded(self, x: np.ndarray) -> None:
        self.norms.forward(x, x, "token_embd_norm")

    def _norm_before(self, layer: int) -> str:
        return "output_norm" if layer == self.shape.n_layer else f"blk.{layer}.attn_norm"

    def _block_forward(self, layer: int, x: np.ndarray, rebuild: bool = False) -> None:
        self.stream.enter(layer, layer - 1 if rebuild else layer + 1)
        k = self.kept.of(layer, len(x))
        self._attention_forward(layer, self._normed(layer, x), k)
        self.linear.forward(x, k["att"], layer, "attn_output", k, accumulate=True)
        self.ops.copy(k["mid"], x)
        norm = self.arena.view("norm", *x.shape)
        self.norms.forward(norm, x, f"blk.{layer}.ffn_norm")
        self._up_forward(layer, norm, k)
        self._down_forward(layer, x, k, rebuild)

    def _up_forward(self, layer: int, norm: np.ndarray, k: Activations) -> None:
        both = self.arena.view("gate_up", len(norm), 2 * self.shape.d_ff)
        self.linear.forward(both, norm, layer, "ffn_up", k)
        self._divide(both, k["gate"], k["up"])

    def _mlp_backward(self, layer: int, dx: np.ndarray, k: Activations, deepest: int) -> None:
        grads = self._down_backward(layer, dx, k, deepest)
        if not grads:
            return
        norm, dnorm = (self.arena.view(name, *dx.shape) for name in ("norm", "x"))
        both = self._joined("gate_up", *grads.values())
        self.norms.forward(norm, k["mid"], f"blk.{layer}.ffn_norm")
        self.linear.backward(dnorm if deepest > 1 else None, both, layer, "ffn_up", k)
        self.linear.finish(norm, layer, "ffn_up")
        if deepest > 1:
            self.norms.add_backward(dx, dnorm, k["mid"], f"blk.{layer}.ffn_norm")

    def _attention_backward(self, layer: int, dx: np.ndarray, datt: np.ndarray, k: Activations) -> None:
        grad = self._attend_backward(layer, datt, k)["attn_qkv"]
        x = self.kept.block_x(layer, len(dx))
        norm = self._normed(layer, x)
        dnorm = self.arena.view("x", *dx.shape) if layer > self.run.lowest else None
        self.linear.backward(dnorm, grad, layer, "attn_qkv", k)
        self.linear.finish(norm, layer, "attn_qkv")
        if dnorm is not None:
            self.norms.add_backward(dx, dnorm, x, self._norm_before(layer))

    def _normed(self, layer: int, x: np.ndarray) -> np.ndarray:
        """What a block's attention reads of its input; the first block's is not normed."""
        if layer == 0:
            return x
        norm = self.arena.view("norm", *x.shape)
        self.norms.forward(norm, x, self._norm_before(layer))
        return norm
