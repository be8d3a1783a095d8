"""Serial adapters: a small network after each sublayer (Houlsby et al. 2019, arXiv 1902.00751).

Before the output y of attention and of the feed-forward part joins the residual stream, it becomes

    y + silu(y down^T + b) up + c,    down, up [R, D], b [R], c [D]

R is adapter_width, D the model's width; T tokens. The activation is that of the `adapters` library. llama.cpp has no
such step, so edgetune's own engine answers.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from ..backends.arena import Arena
from ..backends.base import Array, Backend
from ..options import option
from .arrays import ArrayFamily, CarvedArrays
from .base import OWN_ENGINE, SUBLAYERS, Carved, Shapes, register

SPREAD = 0.02  # standard deviation of down at the start; up is 0, so that the network begins as the base


@register
@dataclass(frozen=True)
class Houlsby(ArrayFamily):
    """A small network after attention and after the feed-forward part of each block."""

    name: ClassVar[str] = "houlsby"
    adapts: ClassVar[tuple[str, ...]] = (SUBLAYERS,)
    served_by: ClassVar[str] = OWN_ENGINE
    size: ClassVar[tuple[str, ...]] = ("adapter_width",)
    adapter_width: int = option(16, "Values between the two matrices after each sublayer.", low=1, high=4096)

    def arrays(self, shapes: Shapes) -> dict[str, tuple[int, ...]]:
        r = self.adapter_width
        found: dict[str, tuple[int, ...]] = {}
        for name, (d,) in shapes.items():
            found |= {f"{name}.down": (r, d), f"{name}.b": (r,), f"{name}.up": (r, d), f"{name}.c": (d,)}
        return found

    def carve(self, shapes: Shapes, arena: Arena, ops: Backend, seed: int) -> Carved:  # noqa: ARG002
        return CarvedHoulsby(self, shapes, arena, seed)


class CarvedHoulsby(CarvedArrays):
    def __init__(self, family: Houlsby, shapes: Shapes, arena: Arena, seed: int) -> None:
        super().__init__(family, shapes, arena)
        rng = np.random.default_rng(seed)
        for name, array in self.values.items():
            array[:] = SPREAD * rng.standard_normal(array.shape) if name.endswith(".down") else 0

    def sublayer_forward(self, name: str, out: Array) -> None:
        value = self.values
        hidden = _silu(out @ value[f"{name}.down"].T + value[f"{name}.b"])
        out += hidden @ value[f"{name}.up"] + value[f"{name}.c"]

    def sublayer_backward(self, name: str, dout: Array, out: Array) -> None:
        value = self.values
        grad = self.gradients
        before = out @ value[f"{name}.down"].T + value[f"{name}.b"]
        grad[f"{name}.up"][:] += _silu(before).T @ dout
        grad[f"{name}.c"][:] += dout.sum(0)
        dbefore = (dout @ value[f"{name}.up"].T) * _silu_slope(before)
        grad[f"{name}.down"][:] += dbefore.T @ out
        grad[f"{name}.b"][:] += dbefore.sum(0)
        dout += dbefore @ value[f"{name}.down"]


def _silu(x: np.ndarray) -> np.ndarray:
    found: np.ndarray = x * _sigmoid(x)
    return found


def _silu_slope(x: np.ndarray) -> np.ndarray:
    s = _sigmoid(x)
    found: np.ndarray = s * (1 + x * (1 - s))
    return found


def _sigmoid(x: np.ndarray) -> np.ndarray:
    found: np.ndarray = np.exp(-np.logaddexp(0, -x))
    return found
