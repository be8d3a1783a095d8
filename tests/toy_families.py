"""An adapter family that the package does not know: it trains embeddings before the text. It is no LoRA: edgetune's own
engine serves it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

from edgetune.adapters.arrays import ArrayFamily, CarvedArrays
from edgetune.adapters.base import INPUT, OWN_ENGINE, Carved, Shapes
from edgetune.options import option


@dataclass(frozen=True)
class Prompt(ArrayFamily):
    """Embeddings before the text (Lester et al. 2021)."""

    name: ClassVar[str] = "prompt"
    adapts: ClassVar[tuple[str, ...]] = (INPUT,)
    served_by: ClassVar[str] = OWN_ENGINE
    rows: int = option(5, "Virtual tokens.", low=1)

    @property
    def virtual_tokens(self) -> int:
        return self.rows

    def arrays(self, shapes: Shapes) -> dict[str, tuple[int, ...]]:
        return {name: (self.rows, *part) for name, part in shapes.items()}

    def carve(self, shapes: Shapes, arena: Any, ops: Any, seed: int) -> Carved:  # noqa: ARG002
        return CarvedPrompt(self, shapes, arena, seed)


class CarvedPrompt(CarvedArrays):
    def __init__(self, family: Prompt, shapes: Shapes, arena: Any, seed: int) -> None:
        super().__init__(family, shapes, arena)
        self.values["input"][:] = np.random.default_rng(seed).standard_normal(self.values["input"].shape) / 4

    def virtual_forward(self) -> np.ndarray:
        return self.values["input"]

    def virtual_backward(self, drows: np.ndarray) -> None:
        self.gradients["input"] += drows
