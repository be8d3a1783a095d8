"""Safetensors files in and out, checked by the package of that name; three float types become float32.

Tensors are read one at a time from the open file: the package returns either a whole file or no bfloat16.
"""

from __future__ import annotations

import json
from math import prod
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray

from ..disk import open_regular
from ..errors import FormatError, UnsupportedError

_TYPES = {"F32": "<f4", "F16": "<f2", "BF16": "<u2"}
_BROKEN = "the file is damaged or incomplete: save or download it again"


def write_safetensors(path: Path, tensors: dict[str, NDArray[np.float32]]) -> None:
    """Write float32 tensors, as PyTorch's users expect them."""
    from safetensors.numpy import save

    contiguous = {name: np.asarray(values, order="C") for name, values in tensors.items()}  # it takes their addresses
    path.write_bytes(save(contiguous, {"format": "pt"}))


def read_safetensors(path: Path) -> dict[str, NDArray[np.float32]]:
    """Name -> float32 array of every tensor, in the order in which they are stored. Raises as Safetensors does."""
    with Safetensors(path) as file:
        return {name: file.read(name) for name in file.shapes}


class Safetensors:
    """An open file. `shapes`, `types`: by name, as stored. Raises FormatError for one that is missing or damaged."""

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            self._file: BinaryIO = open_regular(path)
        except OSError as error:
            raise FormatError(f"cannot read {path}: {error.strerror}", "name a safetensors file") from None
        try:
            self._header = self._checked_header()
        except BaseException:
            self._file.close()
            raise
        self._begin = self._file.tell()  # of the first tensor
        # the package itself returns the names in another order each time
        in_order = sorted(self._header, key=lambda name: self._header[name]["data_offsets"])
        self.shapes: dict[str, tuple[int, ...]] = {name: tuple(self._header[name]["shape"]) for name in in_order}
        self.types: dict[str, str] = {name: self._header[name]["dtype"] for name in in_order}

    def __enter__(self) -> Safetensors:
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()

    def read(self, name: str) -> NDArray[np.float32]:
        """The tensor of this name, F32, F16 or BF16, as float32. UnsupportedError for another type."""
        kind = self._header[name]["dtype"]
        shape = self.shapes[name]
        if kind not in _TYPES:
            raise UnsupportedError(f"{self.path}: {name} is {kind}", f"supported are {', '.join(_TYPES)}")
        try:
            self._file.seek(self._begin + self._header[name]["data_offsets"][0])
            stored: NDArray[Any] = np.fromfile(self._file, _TYPES[kind], prod(shape))
        except OSError as error:
            raise FormatError(f"cannot read {self.path}: {error.strerror}", "check the disk") from None
        if stored.size != prod(shape):
            raise FormatError(f"{self.path} ends within {name}", _BROKEN)
        if kind == "BF16":
            return (stored.astype(np.uint32) << 16).view(np.float32).reshape(shape)
        return stored.astype(np.float32, copy=False).reshape(shape)

    def _checked_header(self) -> dict[str, Any]:
        """Type, shape and offsets by name. The package checks the very file that is read, not what its path names."""
        from safetensors import SafetensorError, safe_open

        try:
            with safe_open(f"/proc/self/fd/{self._file.fileno()}", "numpy"):
                pass
        except (SafetensorError, OSError) as error:
            raise FormatError(f"{self.path} is no safetensors file: {str(error)[:200]}", _BROKEN) from None
        length = int.from_bytes(self._file.read(8), "little")
        header: dict[str, Any] = json.loads(self._file.read(length))
        header.pop("__metadata__", None)
        return header
