"""The tensors of a checkpoint under the names that a GGUF has for them, in its shapes; rows in transformers' order.

Some modules hold two matrices, one above the other. A GGUF holds those of a block's experts as one tensor [E, N, K].
"""

from __future__ import annotations

import re
from collections import Counter

import numpy as np
from numpy.typing import NDArray
from transformers import PretrainedConfig

from ...errors import FormatError
from .model_types import ModelType

_IN_BLOCK = re.compile(r"model\.layers\.(\d+)\.([\w.]+)\.(weight|bias)")
_CONVOLUTIONS = ("conv.weight", "conv1d.weight")
_OF_EXPERT = re.compile(r"\w+\.experts\.(\d{1,6})\.(\w+)")
_BARE = re.compile(r"model\.layers\.(\d+)\.([\w.]+)")  # a tensor without a name in its module


class Placed:
    """`tensors`: those that were put, float32 by GGUF's name."""

    def __init__(self, kind: ModelType, config: PretrainedConfig) -> None:
        self.tensors: dict[str, NDArray[np.float32]] = {}
        self._experts = int(getattr(config, kind.keys.get("expert_count", ""), 0))
        self._config = config
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
        if len(names) > 1:
            self.tensors |= zip(names, self._kind.divide(array, self._config), strict=True)
        elif (expert := _expert(name)) is not None:
            self._put_expert(names[0], expert, array)
        elif names[0].endswith(_CONVOLUTIONS) and array.ndim == 3:  # of each channel by itself: [D, 1, L]
            self.tensors[names[0]] = array[:, 0]
        else:
            of_shape = self._kind.shapes.get(names[0].split(".", 2)[-1])
            self.tensors[names[0]] = of_shape(array, self._config) if of_shape else array

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
        if (bare := _BARE.fullmatch(name)) and (ours := self._kind.bare.get(bare[2])):
            return [f"blk.{bare[1]}.{ours}"]
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
