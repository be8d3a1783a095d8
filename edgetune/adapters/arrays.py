"""Families that train arrays by name, which are no pairs of thin matrices: the part of them that is alike."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from math import prod
from typing import Any

import numpy as np

from ..backends.arena import Arena
from ..errors import MismatchError
from ..formats.gguf import Tensor
from .base import Artifact, Carved, Family, Group, Shapes, slices


@dataclass(frozen=True)
class ArrayFamily(Family):
    @abstractmethod
    def arrays(self, shapes: Shapes) -> dict[str, tuple[int, ...]]:
        """The shape of each trained array, by its name in the file."""

    def parameters(self, shapes: Shapes) -> list[Group]:
        """One group an array; matrices alone decay."""
        return [Group(name, prod(shape), decay=len(shape) == 2) for name, shape in self.arrays(shapes).items()]

    def smaller(self) -> dict[str, Any]:
        """Half of what sets the size of the arrays."""
        sizes = {name: getattr(self, name) for name in self.size}
        return {name: size // 2 for name, size in sizes.items() if size > 1}


class CarvedArrays(Carved):
    """values, gradients: views of the arena by name, as `ArrayFamily.arrays`. A subclass sets the start of values."""

    def __init__(self, family: ArrayFamily, shapes: Shapes, arena: Arena) -> None:
        own = family.arrays(shapes)
        groups = family.parameters(shapes)
        self.values, self.gradients = (
            {name: part.reshape(own[name]) for name, part in zip(own, slices(groups, arena.flat(flat)), strict=True)}
            for flat in ("lora", "dlora"))
        self._sizes = [f"--{name.replace('_', '-')}" for name in family.size]

    def artifact(self) -> Artifact:
        return Artifact(tensors=self.values)

    def load(self, found: Artifact, source: str) -> None:
        self.check_shapes(found.tensors, source)
        for name, array in self.values.items():
            array[:] = found.tensors[name]

    def check_shapes(self, found: Mapping[str, np.ndarray | Tensor], source: str) -> None:
        """Raises MismatchError for other names or shapes than those of `values`."""
        own, others = ({name: array.shape for name, array in arrays.items()} for arrays in (self.values, found))
        if own != others:
            raise MismatchError(f"{source} has arrays of other sizes or places than are trained here",
                                f"give {' and '.join([*self._sizes, '--blocks'])} the values that it has")
