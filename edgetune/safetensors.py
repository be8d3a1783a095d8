"""The safetensors format: u64 length of a JSON header, the header, the data. Read strictly: it is other people's bytes.

The header maps a name to {"dtype", "shape", "data_offsets": [begin, end]}; the tensors cover the data without holes or
overlaps. Source: https://github.com/huggingface/safetensors, Format.
"""

from __future__ import annotations

import json
import struct
from math import prod
from pathlib import Path
from typing import Any, TypeGuard

import numpy as np
from numpy.typing import NDArray

from .errors import FormatError, UnsupportedError

_SIZES = {"F32": 4, "F16": 2, "BF16": 2}
_MAX_HEADER = 100_000_000  # the format's own limit
_BROKEN = "the file is damaged or incomplete: save or download it again"


def write_safetensors(path: Path, tensors: dict[str, NDArray[np.float32]]) -> None:
    """Write float32 tensors."""
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    end = 0
    for name, values in tensors.items():
        begin, end = end, end + values.nbytes
        header[name] = {"dtype": "F32", "shape": list(values.shape), "data_offsets": [begin, end]}
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    with path.open("wb") as file:
        file.write(struct.pack("<Q", len(text)) + text)
        for values in tensors.values():
            file.write(values.astype("<f4").tobytes())


def read_safetensors(path: Path) -> dict[str, NDArray[np.float32]]:
    """Name -> float32 array for tensors in F32, F16 or BF16.

    Raises FormatError for a missing, truncated or corrupt file, UnsupportedError for another dtype.
    """
    try:
        raw = np.fromfile(path, np.uint8)
    except OSError as error:
        raise FormatError(f"cannot read {path}: {error.strerror}", "check the path") from None
    header, data = _split(path, raw)
    tensors, next_begin = {}, 0
    for name, begin, end, dtype, shape in sorted(_infos(path, header), key=lambda info: info[1:3]):
        if begin != next_begin or end > data.size:
            raise FormatError(f"{path}: {name} lies at bytes {begin} to {end} of {data.size}, but its place begins at "
                              f"{next_begin}", _BROKEN)
        if end - begin != prod(shape) * _SIZES[dtype]:
            raise FormatError(f"{path}: {name} has {end - begin} bytes for shape {shape} in {dtype}", _BROKEN)
        tensors[name] = _f32(data[begin:end], dtype).reshape(shape)
        next_begin = end
    if next_begin != data.size:
        raise FormatError(f"{path}: its tensors end at byte {next_begin}, but the data has {data.size} bytes", _BROKEN)
    return tensors


def _split(path: Path, raw: NDArray[np.uint8]) -> tuple[dict[str, Any], NDArray[np.uint8]]:
    """The header and the data."""
    length = int.from_bytes(raw[:8].tobytes(), "little")
    if raw.size < 8 or not 2 <= length <= min(raw.size - 8, _MAX_HEADER):
        raise FormatError(f"{path} is not a safetensors file: {raw.size} bytes, a header of {length}", _BROKEN)
    try:
        header = json.loads(raw[8 : 8 + length].tobytes(), object_pairs_hook=_distinct)
    except (ValueError, RecursionError) as error:
        raise FormatError(f"{path}: its header is not JSON: {error}", _BROKEN) from None
    if not isinstance(header, dict):
        raise FormatError(f"{path}: its header is not a JSON object", _BROKEN)
    return header, raw[8 + length :]


def _distinct(items: list[tuple[str, Any]]) -> dict[str, Any]:
    if len(dict(items)) != len(items):
        raise ValueError("a name stands there twice")
    return dict(items)


def _infos(path: Path, header: dict[str, Any]) -> list[tuple[str, int, int, str, list[int]]]:
    """Name, begin, end, dtype and shape of every tensor, each of the right type."""
    infos = []
    for name, info in header.items():
        if name == "__metadata__":
            continue
        fields = info if isinstance(info, dict) else {}
        dtype, shape, offsets = fields.get("dtype"), fields.get("shape"), fields.get("data_offsets", [])
        if not (isinstance(dtype, str) and _are_counts(shape) and _are_counts(offsets) and len(offsets) == 2):
            raise FormatError(f"{path}: {name[:80]!r} is described by {str(info)[:80]}", _BROKEN)
        if dtype not in _SIZES:
            raise UnsupportedError(f"{path}: {name} is {dtype[:20]}", f"supported are {', '.join(_SIZES)}")
        infos.append((name, offsets[0], offsets[1], dtype, shape))
    return infos


def _are_counts(value: Any) -> TypeGuard[list[int]]:
    return isinstance(value, list) and all(type(n) is int and 0 <= n < 2**63 for n in value)


def _f32(data: NDArray[np.uint8], dtype: str) -> NDArray[np.float32]:
    if dtype == "BF16":
        return (np.frombuffer(data.tobytes(), "<u2").astype(np.uint32) << 16).view(np.float32)
    return np.frombuffer(data.tobytes(), "<f4" if dtype == "F32" else "<f2").astype(np.float32)
