"""Adapter families that the package does not know, for parts of a network but projections.

BitFit trains what is added to norms' weights and to projections' outputs, Prompt trains embeddings before the text.
Neither is a LoRA: edgetune's own engine serves them.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

from edgetune.adapters.arrays import ArrayFamily, CarvedArrays
from edgetune.adapters.base import (
    INPUT,
    NORMS,
    OWN_ENGINE,
    PROJECTIONS,
    Carved,
    Frozen,
    Shapes,
)
from edgetune.backends.base import floats
from edgetune.options import option


@dataclass(frozen=True)
class Toy(ArrayFamily):
    """Trains one array for each part."""

    served_by: ClassVar[str] = OWN_ENGINE

    def shape_of(self, part: tuple[int, ...]) -> tuple[int, ...]:
        return part[:1]

    def arrays(self, shapes: Shapes) -> dict[str, tuple[int, ...]]:
        return {name: self.shape_of(part) for name, part in shapes.items()}


class CarvedToy(CarvedArrays):
    def __init__(self, family: Toy, shapes: Shapes, arena: Any, seed: int) -> None:
        super().__init__(family, shapes, arena)
        rng = np.random.default_rng(seed)
        for value in self.values.values():
            value[:] = rng.standard_normal(value.shape) / 4


@dataclass(frozen=True)
class BitFit(Toy):
    """Weights of norms and biases of projections (Ben Zaken et al. 2022)."""

    name: ClassVar[str] = "bitfit"
    adapts: ClassVar[tuple[str, ...]] = (PROJECTIONS, NORMS)

    def carve(self, shapes: Shapes, arena: Any, ops: Any, seed: int) -> Carved:
        return CarvedBitFit(self, shapes, arena, ops, seed)


class CarvedBitFit(CarvedToy):
    def __init__(self, family: Toy, shapes: Shapes, arena: Any, ops: Any, seed: int) -> None:
        super().__init__(family, shapes, arena, seed)
        self.ops = ops

    def norm(self, name: str, weight: Any) -> Any:
        return weight + self.values[name]

    def norm_backward(self, name: str, dweight: np.ndarray) -> None:
        self.gradients[name] += dweight

    def forward(self, linear: Frozen, out: Any, inp: Any, kept: Any, accumulate: bool) -> None:  # noqa: ARG002
        linear.forward(out, inp, accumulate)
        self.ops.add_bias(out, self.values[linear.name])

    def backward(self, linear: Frozen, dinp: Any, dout: Any, kept: Any, accumulate: bool) -> None:  # noqa: ARG002
        self.gradients[linear.name] += floats(dout).sum(0)
        if dinp is not None:
            linear.backward(dinp, dout, accumulate)


@dataclass(frozen=True)
class Prompt(Toy):
    """Embeddings before the text (Lester et al. 2021)."""

    name: ClassVar[str] = "prompt"
    adapts: ClassVar[tuple[str, ...]] = (INPUT,)
    rows: int = option(5, "Virtual tokens.", low=1)

    @property
    def virtual_tokens(self) -> int:
        return self.rows

    def shape_of(self, part: tuple[int, ...]) -> tuple[int, ...]:
        return self.rows, *part

    def carve(self, shapes: Shapes, arena: Any, ops: Any, seed: int) -> Carved:  # noqa: ARG002
        return CarvedPrompt(self, shapes, arena, seed)


class CarvedPrompt(CarvedToy):
    def virtual_forward(self) -> np.ndarray:
        return self.values["input"]

    def virtual_backward(self, drows: np.ndarray) -> None:
        self.gradients["input"] += drows
