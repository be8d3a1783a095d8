"""BitFit: the norms' weights and the projections' biases of the base itself are trained (Ben Zaken et al. 2022,
arXiv 2106.10199); norms, which the paper leaves as they are, because most models here have no biases.

In a GGUF they are float32 whatever the format of the matrices, so that nothing is rounded when they are merged.
N outputs of a projection, D the width of a norm.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from ..backends.arena import Arena
from ..backends.base import Array, Backend
from ..formats.gguf import Gguf, Tensor
from .arrays import ArrayFamily, CarvedArrays
from .base import BIASES, MERGED, NORMS, Artifact, Carved, Shapes, register

AT_ONCE = 1 << 18  # weights that are read together


@register
@dataclass(frozen=True)
class BitFit(ArrayFamily):
    """The weights of norms, and the biases of projections where the model has some."""

    name: ClassVar[str] = "bitfit"
    adapts: ClassVar[tuple[str, ...]] = (NORMS, BIASES)
    served_by: ClassVar[str] = MERGED
    rate: ClassVar[float] = 4.0  # few numbers: docs/results/training.md

    def arrays(self, shapes: Shapes) -> dict[str, tuple[int, ...]]:
        return {tensor_name(name): shape for name, shape in shapes.items()}

    def carve(self, shapes: Shapes, arena: Arena, ops: Backend, seed: int) -> Carved:  # noqa: ARG002
        return CarvedBitFit(self, shapes, arena)


class CarvedBitFit(CarvedArrays):
    """values: by the names of the base's tensors, in whose place they are."""

    def read_base(self, base: Gguf) -> None:
        for name in self.values:
            for place, part in base.tensors[name].parts(AT_ONCE):
                self._rows(name)[place] = base.read(part).f32()

    def norm(self, name: str, weight: Array) -> Array:  # noqa: ARG002
        return self.values[f"{name}.weight"]

    def norm_backward(self, name: str, dweight: np.ndarray) -> None:
        self.gradients[f"{name}.weight"] += dweight

    def bias(self, name: str) -> Array:
        return self.values[f"{name}.bias"]

    def bias_backward(self, name: str, dbias: np.ndarray) -> None:
        self.gradients[f"{name}.bias"] += dbias

    def artifact(self) -> Artifact:
        return Artifact(weights={name: self._floats(name) for name in self.values})

    def load(self, found: Artifact, source: str) -> None:
        self.check_shapes(found.weights, source)
        for name, tensor in found.weights.items():
            for place, part in tensor.parts(AT_ONCE):
                self._rows(name)[place] = part.f32()

    def _floats(self, name: str) -> Tensor:
        value = self.values[name]
        return Tensor(name, value.shape, "F32", value.reshape(-1).view(np.uint8))

    def _rows(self, name: str) -> np.ndarray:
        """The value as a matrix: a vector is one row."""
        return np.atleast_2d(self.values[name])


def tensor_name(part: str) -> str:
    """The name of an adapted part's tensor in the base's file."""
    return part if part.endswith(".bias") else f"{part}.weight"
