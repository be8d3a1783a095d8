"""The layer norms of a network, all frozen, with a bias or without. T rows, D the model's width."""

from __future__ import annotations

from collections.abc import Mapping

from ..backends.arena import Arena, Buffer
from ..backends.base import Array, Backend


def layer_norm_buffers(tokens: int) -> list[Buffer]:
    return [Buffer("norm_mean", (tokens,), "step"), Buffer("norm_rstd", (tokens,), "step")]


class LayerNorms:
    """The norms, whose weights and biases are `vectors` by name. A backward follows the forward of the same input."""

    def __init__(self, ops: Backend, arena: Arena, vectors: Mapping[str, Array], eps: float) -> None:
        self._ops = ops
        self._arena = arena
        self._vectors = vectors
        self._eps = eps

    def forward(self, out: Array, inp: Array, name: str) -> None:
        """out [T, D] = the norm of inp [T, D], which it may be."""
        mean, rstd = self._statistics(len(inp))
        self._ops.layernorm_forward(out, mean, rstd, inp, self._vectors[f"{name}.weight"],
                                    self._vectors.get(f"{name}.bias"), self._eps)

    def backward(self, dx: Array, inp: Array, name: str) -> None:
        """dx [T, D], in place: from the gradient of the norm's output to that of its input."""
        mean, rstd = self._statistics(len(inp))
        self._ops.layernorm_backward(dx, dx, inp, self._vectors[f"{name}.weight"], mean, rstd)

    def add_backward(self, dx: Array, dout: Array, inp: Array, name: str) -> None:
        """dx [T, D] += the gradient of the norm's input by that of its output."""
        mean, rstd = self._statistics(len(inp))
        self._ops.layernorm_backward(dx, dout, inp, self._vectors[f"{name}.weight"], mean, rstd, accumulate=True)

    def _statistics(self, t: int) -> tuple[Array, Array]:
        return self._arena.view("norm_mean", t), self._arena.view("norm_rstd", t)
