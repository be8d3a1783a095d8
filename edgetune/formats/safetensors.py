"""Safetensors files in and out, checked by the package of that name; three float types become float32.

Tensors are read one at a time from the open file: the package returns either a whole file or no bfloat16.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
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


@dataclass(frozen=True)
class TensorPlace:
    """A tensor in a file: its type and shape as stored, and the byte where it begins."""

    type: str
    shape: tuple[int, ...]
    begin: int

    def read(self, file: BinaryIO, name: str, path: Path) -> NDArray[np.float32]:
        """The tensor, F32, F16 or BF16, as float32. UnsupportedError for another type, FormatError for a file that
        ends before it does. name, path: for errors.
        """
        if self.type not in _TYPES:
            raise UnsupportedError(f"{path}: {name} is {self.type}", f"supported are {', '.join(_TYPES)}")
        try:
            file.seek(self.begin)
            stored: NDArray[Any] = np.fromfile(file, _TYPES[self.type], prod(self.shape))
        except OSError as error:
            raise FormatError(f"cannot read {path}: {error.strerror}", "check the disk") from None
        if stored.size != prod(self.shape):
            raise FormatError(f"{path} ends within {name}", _BROKEN)
        if self.type == "BF16":
            return (stored.astype(np.uint32) << 16).view(np.float32).reshape(self.shape)
        return stored.astype(np.float32, copy=False).reshape(self.shape)


class Safetensors:
    """An open file. `places`, `shapes`: by name, as stored. Raises FormatError for one that is missing or damaged."""

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            self._file: BinaryIO = open_regular(path)
        except OSError as error:
            raise FormatError(f"cannot read {path}: {error.strerror}", "name a safetensors file") from None
        try:
            header = self._checked_header()
        except BaseException:
            self._file.close()
            raise
        first = self._file.tell()
        # the package itself returns the names in another order each time
        in_order = sorted(header, key=lambda name: header[name]["data_offsets"])
        self.places = {name: TensorPlace(header[name]["dtype"], tuple(header[name]["shape"]),
                                         first + header[name]["data_offsets"][0]) for name in in_order}
        self.shapes = {name: place.shape for name, place in self.places.items()}

    def __enter__(self) -> Safetensors:
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()

    def read(self, name: str) -> NDArray[np.float32]:
        """The tensor of this name, as float32. Raises as `TensorPlace.read`."""
        return self.places[name].read(self._file, name, self.path)

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
