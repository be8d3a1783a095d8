"""Sublayers whose projections of the normed input are one matrix: queries, keys and values; the gate, then the rest."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from ..backends.arena import Buffer
from ..formats.shape import Shape
from .attention import SelfAttention
from .gated import Gated
from .linear import Activations, RunShape

if TYPE_CHECKING:
    from ..data.packing import Batch

QKV = "attn_qkv"
GATE_UP = "ffn_up"  # phi3's name for both


class FusedAttention(SelfAttention):
    """Queries are projected for all tokens, because keys and values are."""

    inputs = (QKV,)
    repeats = False

    @classmethod
    def buffers(cls, s: Shape, run: RunShape, tokens: int, prefix: int) -> list[Buffer]:
        return [*super().buffers(s, run, tokens, prefix),
                Buffer("qkv", (tokens, s.d_q + 2 * s.d_kv), "block", run.activations)]

    def _inputs(self, layer: int, norm: np.ndarray, batch: Batch) -> None:
        of = self.of
        _, k, _ = of.kept_of(layer, batch)
        s = of.shape.of(layer)
        whole = of.arena.view("qkv", len(norm), s.d_q + 2 * s.d_kv)
        of.linear.forward(whole, norm, layer, QKV, k)
        of.ops.synchronize()
        positions = of.place(batch).positions
        for name, part in zip("qkv", np.split(whole, (s.d_q, s.d_q + s.d_kv), axis=1), strict=True):
            raw = self._raw(name, k)
            raw[:] = part
            self._place_heads(k[name], raw, layer, name, k, positions)

    def _inputs_backward(self, layer: int, dinp: np.ndarray | None, grads: tuple[np.ndarray, ...], norm: np.ndarray,
                         batch: Batch) -> None:
        of = self.of
        _, k, _ = of.kept_of(layer, batch)
        s = of.shape.of(layer)
        whole = of.arena.view("qkv", len(norm), s.d_q + 2 * s.d_kv)
        positions = of.place(batch).positions
        for name, grad in zip("qkv", grads, strict=True):
            self._place_heads_backward(grad, layer, name, k, positions)
        of.ops.synchronize()
        np.concatenate([grad.reshape(len(norm), -1) for grad in grads], axis=1, out=whole)
        of.linear.backward(dinp, whole, layer, QKV, k)
        of.linear.finish(norm, layer, QKV)


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
