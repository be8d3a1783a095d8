"""A model in floats to a GGUF whose matrices are in the formats that each was given; the rest stays F32."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ...disk import replaced
from ...formats.gguf import Tensor, open_gguf, write_gguf
from ...llamacpp.quantizer import Importance, encode, quantize_file, type_named
from ..progress import Progress, ignore, in_parallel, never
from ..source.floats import Floats, is_matrix
from .grid import FIELDS, compensated, factor_of


@dataclass(frozen=True)
class Quantized:
    """The file: its size, bits a weight over all, and how many matrices have each format."""

    bytes: int
    bits_per_weight: float
    formats: dict[str, int]


def write(path: str | os.PathLike[str], model: Floats, types: Mapping[str, str], *,
          importance: Importance | None = None, moments: Importance | None = None, threads: int = 1,
          on_progress: Progress = ignore, should_stop: Callable[[], bool] = never) -> Quantized:
    """types: of every matrix, a name in FORMATS whose block divides its rows.

    importance: mean squares [K] of inputs by a matrix's name. moments: their second moments [K, K]; a matrix that has
    them is rounded so that errors make up for each other (grid.py). Threads change no byte.
    """
    def work(name: str) -> Tensor | NDArray[np.float32]:
        array = model.tensors[name]
        if not is_matrix(name, array):
            return array
        if moments and name in moments and types[name] in FIELDS:
            data = compensated(array, types[name], factor_of(moments[name]))
        else:
            data = encode(array, types[name], (importance or {}).get(name))
        return Tensor(name, array.shape, types[name], data.reshape(-1))

    stored = in_parallel(work, list(model.tensors), threads, "quantizing", on_progress, should_stop)
    keys, kinds = keys_of(model)
    write_gguf(path, model.architecture, keys, stored, kinds)
    return _facts(Path(path), model.weights, list(types.values()))


def keys_of(model: Floats) -> tuple[dict[str, Any], dict[str, str]]:
    """Keys and their types. general.file_type names one format: without it llama.cpp names the commonest."""
    keys = {key: value for key, value in model.metadata.items() if key != "general.file_type"}
    return keys | {"general.quantization_version": 2}, model.types | {"general.quantization_version": "u32"}


def stock(source: Path, path: Path, to: str, importance: Importance | None = None, threads: int = 0) -> Quantized:
    """The F16 GGUF `source` in llama.cpp's own type `to`, such as Q4_K_M: each matrix's format is its choice."""
    to = type_named(to)
    with replaced(path) as beside:
        quantize_file(source, beside, to, threads, importance)
    gguf = open_gguf(path)
    formats = [tensor.format for tensor in gguf.tensors.values() if len(tensor.shape) > 1]
    weights = sum(prod(tensor.shape) for tensor in gguf.tensors.values())
    return _facts(path, weights, formats)


def _facts(path: Path, weights: int, formats: list[str]) -> Quantized:
    size = path.stat().st_size
    return Quantized(size, 8 * size / weights, {name: formats.count(name) for name in sorted(set(formats))})
