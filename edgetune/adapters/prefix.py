"""Prefix-tuning: keys and values before each text, in every block (Li and Liang 2021, arXiv 2101.00190; without a
reparametrisation, as P-tuning v2, Liu et al. 2021, arXiv 2110.07602).

The first P positions of every text have no tokens. llama.cpp holds their keys and values like those of a prompt that it
has read already, so a request pays for none of them. P virtual tokens; N = G * C, for G heads of keys of width C.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import ClassVar

import numpy as np

from ..backends.arena import Arena
from ..backends.base import Backend
from ..errors import MismatchError
from ..llamacpp.kv_state import KeyValues
from ..options import option
from .arrays import ArrayFamily, CarvedArrays
from .base import KEYS, LLAMA_CPP, Artifact, Carved, Shapes, register
from .store import TOKENS

SPREAD = 0.02  # standard deviation of keys and values at the start


@register
@dataclass(frozen=True)
class Prefix(ArrayFamily):
    """Keys and values of virtual tokens before each text, for which a request computes nothing."""

    name: ClassVar[str] = "prefix"
    adapts: ClassVar[tuple[str, ...]] = (KEYS,)
    served_by: ClassVar[str] = LLAMA_CPP
    size: ClassVar[tuple[str, ...]] = ("prefix_tokens",)
    rate: ClassVar[float] = 32.0  # few numbers, each of which must go far: docs/results/retrieval.md
    prefix_tokens: int = option(16, "Virtual tokens before each text, with trained keys and values in every "
                                "block.", low=1, high=4096)

    @property
    def virtual_tokens(self) -> int:
        return self.prefix_tokens

    def arrays(self, shapes: Shapes) -> dict[str, tuple[int, ...]]:
        """Keys, then values."""
        return {name: (2, self.prefix_tokens, width) for name, (width,) in shapes.items()}

    def carve(self, shapes: Shapes, arena: Arena, ops: Backend, seed: int) -> Carved:  # noqa: ARG002
        return CarvedPrefix(self, shapes, arena, seed)

    def served_keys(self, found: Artifact, computed: Callable[[Artifact], KeyValues]) -> KeyValues:  # noqa: ARG002
        keys = {}
        for name, array in found.tensors.items():
            block = re.fullmatch(r"blk\.(\d+)\.keys", name)
            if block is None or array.ndim != 3 or array.shape[:2] != (2, self.prefix_tokens):
                raise MismatchError(f"an adapter of the family prefix has {name} of shape {list(array.shape)}",
                                    "train it again")
            if not np.isfinite(array).all():
                raise MismatchError(f"an adapter of the family prefix has values in {name} that are not finite",
                                    "take an earlier adapter")
            keys[int(block[1])] = (array[0], array[1])
        return keys


class CarvedPrefix(CarvedArrays):
    def __init__(self, family: Prefix, shapes: Shapes, arena: Arena, seed: int) -> None:
        super().__init__(family, shapes, arena)
        self.family = family
        rng = np.random.default_rng(seed)
        for array in self.values.values():
            array[:] = SPREAD * rng.standard_normal(array.shape)

    def load(self, found: Artifact, source: str) -> None:
        """Takes the first tokens of a compiled prompt, which may have more."""
        if found.facts.get(TOKENS):
            count = self.family.prefix_tokens
            found = replace(found, tensors={name: array[:, :count] for name, array in found.tensors.items()})
        super().load(found, source)

    def keys_forward(self, name: str) -> tuple[np.ndarray, np.ndarray]:
        keys, values = self.values[name]
        return keys, values

    def keys_backward(self, name: str, dkeys: np.ndarray, dvalues: np.ndarray) -> None:
        self.gradients[name][0] += dkeys
        self.gradients[name][1] += dvalues
