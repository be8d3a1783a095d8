"""The norms of a network: by root mean square, some of them adapted, or layer norms, all frozen.

Letters: T rows, D their width: that of the model, or of a head.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from ..backends.arena import Arena, Buffer
from ..backends.base import Array, Backend, floats
from .linear import ROWS, Projections


class Norms:
    """The root-mean-square norms. vectors: their weights by name and ".weight"; linear: knows what is adapted."""

    def __init__(self, ops: Backend, vectors: Mapping[str, Array], eps: float, linear: Projections) -> None:
        self._ops = ops
        self._vectors = vectors
        self._eps = eps
        self._linear = linear

    def forward(self, out: Array, rstd: Array, inp: Array, name: str) -> None:
        """out [T, D] = inp [T, D] * rstd [T] * weight [D]; inp itself where the model has no such norm."""
        if f"{name}.weight" not in self._vectors:
            self._ops.copy(out, inp)
            return
        self._ops.rmsnorm_forward(out, rstd, inp, self._weight(name), self._eps)

    def backward(self, dinp: Array, dout: Array, inp: Array, rstd: Array, name: str, accumulate: bool = False) -> None:
        """dinp (+)= its gradient; it may be dout. That of an adapted weight goes to the adapter."""
        if f"{name}.weight" not in self._vectors:
            (self._ops.add if accumulate else self._ops.copy)(dinp, dout)
            return
        if self._linear.adapts(name):
            self._linear.adapter.norm_backward(name, self._dweight(dout, inp, rstd, name))
        self._ops.rmsnorm_backward(dinp, dout, inp, self._weight(name), rstd, accumulate)

    def _weight(self, name: str) -> Array:
        weight = self._vectors[f"{name}.weight"]
        return self._linear.adapter.norm(name, weight) if self._linear.adapts(name) else weight

    def _dweight(self, dout: Array, inp: Array, rstd: Array, name: str) -> np.ndarray:
        """[D], the sum over T of dout * inp * rstd."""
        self._ops.synchronize()
        total = np.zeros(self._vectors[f"{name}.weight"].size, np.float32)
        rows = [array.reshape(-1, total.size) for array in (dout, inp)]
        for begin in range(0, rstd.size, ROWS):
            part = slice(begin, begin + ROWS)
            grad, x = (floats(array[part]) for array in rows)
            total += (grad * x * rstd[part, None]).sum(0)
        return total


def layer_norm_buffers(tokens: int) -> list[Buffer]:
    return [Buffer("norm_mean", (tokens,), "step"), Buffer("norm_rstd", (tokens,), "step")]


class LayerNorms:
    """Layer norms, whose weights and biases are `vectors` by name. A backward follows the forward of the same input."""

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
