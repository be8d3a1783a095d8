"""GGUF out, on the gguf package's writer: a file appears whole under its name, or not at all."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from ...disk import replaced
from .read import BY_NAME, VALUE_TYPES, Tensor


@dataclass(frozen=True, eq=False)
class Deferred:
    """A tensor [..., K] whose bytes in `format` are made when they are written: only one is in memory at a time."""

    shape: tuple[int, ...]
    format: str
    make: Callable[[], npt.NDArray[Any]]

    @property
    def data(self) -> memoryview:
        return np.ascontiguousarray(self.make()).data


Weights = Tensor | Deferred | npt.NDArray[np.float32] | npt.NDArray[np.float16]


def write_gguf(
    path: str | os.PathLike[str],
    architecture: str,
    metadata: Mapping[str, object],
    tensors: Mapping[str, Weights],
    types: Mapping[str, str] | None = None,
) -> None:
    """Writes a GGUF version 3: NAME.tmp next to `path`, synced, then renamed. EdgetuneError and no file if that fails.

    A float32 or float16 array is written as F32 or F16, a Tensor as the bytes and format that it has, a Deferred as
    those that it makes. An int becomes
    u32, a float f32, in a list i32 and f32, unless `types` names another type for the key ("u64", "[u32]"). To copy
    another file's keys, hand in its metadata and types; `architecture` wins over general.architecture there.
    """
    with replaced(Path(path)) as beside:
        writer = _fill(beside, architecture, metadata, tensors, types or {})
        try:
            writer.write_header_to_file()
            writer.write_kv_data_to_file()
            _write_tensors(writer)
        finally:
            writer.close()


def _write_tensors(writer: Any) -> None:
    """Writes as write_tensors_to_file, but not by ndarray.tofile, which hides that its last bytes found a full disk."""
    writer.write_ti_data_to_file()
    file = writer.fout[0]
    writer.write_padding(file, file.tell())
    for info in writer.tensors[0].values():
        file.write(info.tensor.data)
        writer.write_padding(file, info.nbytes)


def _fill(
    path: Path,
    architecture: str,
    metadata: Mapping[str, object],
    tensors: Mapping[str, Weights],
    types: Mapping[str, str],
) -> Any:
    """A GGUFWriter that holds everything; nothing is written yet."""
    from gguf import GGUFValueType, GGUFWriter
    from gguf.gguf_writer import TensorInfo

    numbers = {name: GGUFValueType(number) for number, name in VALUE_TYPES.items()}
    writer = GGUFWriter(path, architecture)
    for key, value in metadata.items():
        kind = types.get(key) or _type_of(value)
        if key == "general.alignment":
            writer.add_custom_alignment(value)
        elif key != "general.architecture" and value != []:  # the writer has no empty arrays
            element = numbers[kind.strip("[]")]
            writer.add_key_value(key, _encoded(value), *((numbers["arr"], element) if kind[0] == "[" else (element,)))
    for name, weights in tensors.items():  # not by add_tensor, which knows fewer formats than llama.cpp
        stored = _stored(name, weights)
        format = BY_NAME[stored.format]
        nbytes = prod(stored.shape) // format.block * format.size
        writer.tensors[0][name] = TensorInfo(stored.shape, format.id, nbytes, stored)
    return writer


def _stored(name: str, weights: Weights) -> Tensor | Deferred:
    if not isinstance(weights, np.ndarray):
        return weights
    format = "F32" if weights.dtype == np.float32 else "F16"
    return Tensor(name, weights.shape, format, np.ascontiguousarray(weights).reshape(-1).view(np.uint8))


def _type_of(value: object) -> str:
    if isinstance(value, list):
        return f"[{_type_of(value[0])}]".replace("u32", "i32") if value else "[i32]"
    for kind, name in ((bool, "bool"), (int, "u32"), (float, "f32"), (str, "str")):
        if isinstance(value, kind):
            return name
    raise TypeError(f"GGUF has no type for {value!r}")


def _encoded(value: object) -> object:
    """Strings as bytes: tokens may hold surrogate escapes, which the writer's own encoding refuses."""
    if isinstance(value, list):
        return [_encoded(v) for v in value]
    return value.encode("utf-8", "surrogateescape") if isinstance(value, str) else value
