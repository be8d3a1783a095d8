"""A mixture of experts, one of which all tokens take besides those that the router finds: Granite's. Both outputs are
added. The router does not weigh that one, whose width is separate: a gated feed-forward part.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from ..backends.arena import Buffer
from ..formats.shape import Shape
from .experts import Experts
from .gated import Gated
from .linear import Activations, RunShape

if TYPE_CHECKING:
    from .common import Common


class SharedExpert(Gated):
    """It comes after the others, to whose gradient it adds its own."""

    last = "ffn_down_shexp"
    inputs = ("ffn_gate_shexp", "ffn_up_shexp")
    kept = ("shared_gate", "shared_up")
    work = ("shared_act", "dshared_act")
    adds = True

    @classmethod
    def width(cls, s: Shape) -> int:
        return s.d_shared


class SharedExperts(Experts):
    """inner is that of the experts that the router chooses; the other's is in the arena."""

    also_last = (SharedExpert.last,)
    inputs = (*Experts.inputs, *SharedExpert.inputs)

    def __init__(self, of: Common) -> None:
        super().__init__(of)
        self._shared = SharedExpert(of)

    @classmethod
    def widths(cls, s: Shape) -> dict[str, int]:
        return super().widths(s) | SharedExpert.widths(s)

    @classmethod
    def buffers(cls, s: Shape, run: RunShape, tokens: int, prefix: int) -> list[Buffer]:
        return [*super().buffers(s, run, tokens, prefix), *SharedExpert.buffers(s, run, tokens, prefix)]

    def forward(self, layer: int, norm: np.ndarray, k: Activations) -> np.ndarray:
        self._shared.forward(layer, norm, k)
        return super().forward(layer, norm, k)

    def _output(self, n: int, inner: np.ndarray, layer: int, k: Activations) -> np.ndarray:
        total = super()._output(n, inner, layer, k)
        self._shared.project(total, self._shared_act(k), layer, k, accumulate=True)
        return total

    def keep(self, inner: np.ndarray, layer: int, k: Activations) -> None:
        super().keep(inner, layer, k)
        self._shared.keep(self._shared_act(k), layer, k)

    def backward(self, layer: int, dinp: np.ndarray | None, dout: np.ndarray, norm: np.ndarray, k: Activations,
                 deepest: int) -> None:
        super().backward(layer, dinp, dout, norm, k, deepest)
        self._shared.backward(layer, dinp, dout, norm, k, deepest)

    def _shared_act(self, k: Activations) -> np.ndarray:
        """What `forward` set, [N, F]."""
        act, _ = SharedExpert.work
        gate, _ = SharedExpert.kept
        return self.of.arena.view(act, *k[gate].shape)
