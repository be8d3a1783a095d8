"""A whole model in floats: what every step of compression takes and gives.

It is a GGUF in memory: the same keys, names and row order, so a step that changes weights and metadata has changed the
model that llama.cpp will run. Arrays are never changed in place: a step makes new ones and shares the rest.
"""

from __future__ import annotations

import os
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, cast

import numpy as np
from numpy.typing import NDArray

from ...formats.gguf import Gguf, OpenFile, Tensor, write_gguf
from ...formats.gguf.read import Metadata
from ...formats.gguf.write import Deferred
from ...formats.shape import Shape, read_shape

_WHOLE = (".conv.weight", ".ffn_gate_inp.weight", ".ssm_conv1d.weight", ".ssm_norm.weight", ".ssm_alpha.weight",
          ".ssm_beta.weight", ".ssm_a", ".ssm_d")
_F16_MAX = float(np.finfo(np.float16).max)


@dataclass(frozen=True, eq=False)
class Floats:
    """`metadata` and `types` are a GGUF's keys and their stored types; `tensors` are float32, rows first, by name."""

    architecture: str
    metadata: dict[str, Any]
    types: dict[str, str]
    tensors: dict[str, NDArray[np.float32]]

    @property
    def shape(self) -> Shape:
        """Sizes and switches, read again from metadata and tensors: it raises where a step left them at odds."""
        stored = {name: Tensor(name, array.shape, "F32", array.reshape(-1).view(np.uint8))
                  for name, array in self.tensors.items()}
        keys = cast(Metadata, self.metadata | {"general.architecture": self.architecture})
        return read_shape(Gguf(Path("the model"), 3, keys, stored, np.empty(0, np.uint8), 0,
                               cast(OpenFile, None)))  # there is no file: all is in memory

    @property
    def weights(self) -> int:
        return sum(array.size for array in self.tensors.values())

    def with_keys(self, tensors: dict[str, NDArray[np.float32]] | None = None, **values: Any) -> Floats:
        """The model with other tensors and hyperparameters: with_keys(block_count=20) sets a llama's llama.block_count.

        A dot in a key is written as two underscores: attention__head_count.
        """
        keys = {f"{self.architecture}.{name.replace('__', '.')}": value for name, value in values.items()}
        return replace(self, metadata=self.metadata | keys, tensors=self.tensors if tensors is None else tensors)


def read(gguf: Gguf) -> Floats:
    """Every tensor as float32. UnsupportedError for a format that edgetune does not compute with."""
    metadata = {key: gguf.metadata[key] for key in gguf.metadata if key != "general.architecture"}
    tensors = {name: np.ascontiguousarray(tensor.f32()) for name, tensor in gguf.tensors.items()}
    return Floats(gguf.architecture, metadata, gguf.types, tensors)


def is_matrix(name: str, array: NDArray[np.float32]) -> bool:
    """Whether a tensor is stored in few bits: vectors, convolutions, routers and what changes a state never are."""
    return array.ndim > 1 and not name.endswith(_WHOLE)


def write(path: str | os.PathLike[str], model: Floats) -> None:
    """A GGUF whose matrices are F16, or BF16 where a weight is too large for that; the rest stays F32."""
    stored = {name: _half(array) if is_matrix(name, array) else array for name, array in model.tensors.items()}
    write_gguf(path, model.architecture, model.metadata, stored, model.types)


def write_exactly(path: str | os.PathLike[str], model: Floats) -> None:
    """A GGUF whose weights are all F32: `read` gives the same model again."""
    write_gguf(path, model.architecture, model.metadata, model.tensors, model.types)


def _half(array: NDArray[np.float32]) -> Deferred:
    if array.max() <= _F16_MAX and array.min() >= -_F16_MAX:
        return Deferred(array.shape, "F16", lambda: array.astype(np.float16))
    bits = array.view(np.uint32)  # rounded to nearest and even
    return Deferred(array.shape, "BF16", lambda: ((bits + 0x7FFF + (bits >> 16 & 1)) >> 16).astype(np.uint16))
