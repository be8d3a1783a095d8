"""Safetensors files in and out, by the package of that name; three float types become float32."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..errors import FormatError, UnsupportedError

_TYPES = {"F32": "<f4", "F16": "<f2", "BF16": "<u2"}
_BROKEN = "the file is damaged or incomplete: save or download it again"


def write_safetensors(path: Path, tensors: dict[str, NDArray[np.float32]]) -> None:
    """Write float32 tensors, as PyTorch's users expect them."""
    from safetensors.numpy import save

    contiguous = {name: np.asarray(values, order="C") for name, values in tensors.items()}  # it takes their addresses
    path.write_bytes(save(contiguous, {"format": "pt"}))


def read_safetensors(path: Path) -> dict[str, NDArray[np.float32]]:
    """Name -> float32 array for tensors in F32, F16 or BF16, in the order in which they are stored.

    Raises FormatError for a missing, truncated or corrupt file, UnsupportedError for another dtype.
    """
    from safetensors import SafetensorError, deserialize

    try:
        if path.exists() and not path.is_file():  # a pipe would wait for ever
            raise FormatError(f"{path} is not a regular file", "name a safetensors file")
        raw = path.read_bytes()
        found: dict[str, Any] = dict(deserialize(raw))  # type: ignore[no-untyped-call]
    except OSError as error:
        raise FormatError(f"cannot read {path}: {error.strerror}", "check the path") from None
    except SafetensorError as error:
        raise FormatError(f"{path} is no safetensors file: {str(error)[:200]}", _BROKEN) from None
    tensors = {}
    for name in _in_order(raw):
        info = found[name]
        if info["dtype"] not in _TYPES:
            raise UnsupportedError(f"{path}: {name} is {info['dtype']}", f"supported are {', '.join(_TYPES)}")
        stored = np.frombuffer(info["data"], _TYPES[info["dtype"]])
        tensors[name] = _f32(stored).reshape(info["shape"])
    return tensors


def _in_order(raw: bytes) -> list[str]:
    """Names by where their data begins: the package gives them in another order each time. `raw` is sound."""
    header: dict[str, Any] = json.loads(raw[8:8 + int.from_bytes(raw[:8], "little")])
    header.pop("__metadata__", None)
    return sorted(header, key=lambda name: header[name]["data_offsets"])


def _f32(stored: NDArray[np.generic]) -> NDArray[np.float32]:
    """Of F32, F16, or the bits of BF16."""
    if stored.dtype == np.uint16:
        return (stored.astype(np.uint32) << 16).view(np.float32)
    return stored.astype(np.float32)
