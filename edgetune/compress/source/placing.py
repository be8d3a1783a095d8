"""The tensors of a checkpoint under the names that a GGUF has for them, in its shapes; rows in transformers' order.

Some modules hold two matrices, one above the other. A GGUF holds those of a block's experts as one tensor [E, N, K].
"""

from __future__ import annotations

import re
from collections import Counter

import numpy as np
from numpy.typing import NDArray

from ...errors import FormatError
from .model_types import ModelType

_IN_BLOCK = re.compile(r"model\.layers\.(\d+)\.([\w.]+)\.(weight|bias)")
_OF_EXPERT = re.compile(r"\w+\.experts\.(\d{1,6})\.(\w+)")
_BARE = {".expert_bias": ".bias", ".layer_scalar": ".weight"}  # buffers, which have no name in their module


class Placed:
    """`tensors`: those that were put, float32 by GGUF's name. experts: how many a block has."""

    def __init__(self, kind: ModelType, experts: int) -> None:
        self.tensors: dict[str, NDArray[np.float32]] = {}
        self._experts = experts
        self._kind = kind
        self._inside = {theirs: ours for ours, theirs in kind.modules.items()}
        self._outside = {theirs: ours for ours, theirs in kind.outside.items()}
        self._counts: Counter[str] = Counter()

    def has_place(self, name: str) -> bool:
        """Whether GGUF's architecture has a tensor like transformers' `name`."""
        return bool(self._names(name))

    def put(self, name: str, array: NDArray[np.float32]) -> None:
        """Takes a tensor that has a place. FormatError for an expert that the configuration does not have."""
        names = self._names(name)
        if len(names) == 2:
            axis = 1 if array.ndim == 3 else 0
            self.tensors |= zip(names, np.split(array, 2, axis=axis), strict=True)
        elif (expert := _expert(name)) is not None:
            self._put_expert(names[0], expert, array)
        else:  # a convolution of each channel by itself is [D, 1, L]
            self.tensors[names[0]] = array[:, 0] if names[0].endswith("conv.weight") and array.ndim == 3 else array

    def whole(self) -> dict[str, NDArray[np.float32]]:
        """All tensors. FormatError where a block lacks an expert."""
        for name, count in self._counts.items():
            if count != self._experts:
                raise FormatError(f"the weights have {count} experts of {name}, config.json says {self._experts}",
                                  "config.json and the weights must belong together")
        return self.tensors

    def _put_expert(self, name: str, expert: int, array: NDArray[np.float32]) -> None:
        if expert >= self._experts:
            raise FormatError(f"the weights have an expert {expert} of {name}, config.json says {self._experts}",
                              "config.json and the weights must belong together")
        if name not in self.tensors:
            self.tensors[name] = np.empty((self._experts, *array.shape), np.float32)
        self.tensors[name][expert] = array
        self._counts[name] += 1

    def _names(self, name: str) -> list[str]:
        """GGUF's names of what a tensor holds; []: there are none."""
        for module, suffix in _BARE.items():
            name += suffix if name.endswith(module) else ""
        part, _, suffix = name.rpartition(".")
        if part in self._outside:
            return [f"{self._outside[part]}.{suffix}"]
        if not (match := _IN_BLOCK.fullmatch(name)):
            return []
        block, module, suffix = match.groups()
        if fused := self._kind.fused.get(module):
            return [f"blk.{block}.{ours}.{suffix}" for ours in fused]
        if stacked := self._kind.stacked.get(module):
            return [f"blk.{block}.{ours}_exps.{suffix}" for ours in stacked]
        if expert := _OF_EXPERT.fullmatch(module):
            ours = self._kind.experts.get(expert[2])
            return [f"blk.{block}.{ours}_exps.{suffix}"] if ours else []
        return [f"blk.{block}.{self._inside[module]}.{suffix}"] if module in self._inside else []


def _expert(name: str) -> int | None:
    """The number of the expert whose tensor this is; None: of none."""
    match = _IN_BLOCK.fullmatch(name)
    expert = match and _OF_EXPERT.fullmatch(match[2])
    return int(expert[1]) if expert else None
