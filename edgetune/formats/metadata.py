"""An architecture's keys of a GGUF, with their types checked."""

from __future__ import annotations

import math
from typing import Any

from ..errors import FormatError, UnsupportedError
from .gguf import Gguf


class MetadataReader:
    """Architecture keys with their types checked."""

    def __init__(self, gguf: Gguf, arch: str) -> None:
        self.gguf = gguf
        self.arch = arch

    def _value(self, key: str, default: Any) -> Any:
        value = self.gguf.metadata.get(f"{self.arch}.{key}", default)
        if value is None:
            raise FormatError(f"{self.gguf.path} lacks {self.arch}.{key}", "convert the model again")
        return value

    def any(self, key: str) -> Any:
        return self.gguf.metadata.get(f"{self.arch}.{key}")

    def integer(self, key: str, default: int | None = None) -> int:
        value = self._value(key, default)
        if isinstance(value, list) and value and all(v == value[0] for v in value):
            value = value[0]  # some converters write one number a block
        if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value < 2**31:
            raise UnsupportedError(f"{self.gguf.path} has {self.arch}.{key} = {str(value)[:60]}",
                                   "edgetune needs one whole number for all blocks")
        return value

    def integers(self, key: str, n: int) -> list[int]:
        """One number of each of n blocks, which may be the same one of all."""
        value = self._value(key, None)
        if not isinstance(value, list):
            return [self.integer(key)] * n
        if len(value) != n or not all(type(one) is int and 0 < one < 2**31 for one in value):
            raise FormatError(f"{self.gguf.path} has {self.arch}.{key} = {str(value)[:60]}",
                              f"it must be one positive number, or {n}, one a block")
        return value

    def number(self, key: str, default: float | None = None) -> float:
        value = self._value(key, default)
        if isinstance(value, bool) or not isinstance(value, (int, float)) or not math.isfinite(value):
            raise FormatError(f"{self.gguf.path} has {self.arch}.{key} = {str(value)[:60]}", "it must be a number")
        return float(value)

    def text(self, key: str, default: str) -> str:
        return str(self._value(key, default))


def refuse_variants(get: MetadataReader, usual: dict[str, Any]) -> None:
    """What llama.cpp would compute differently must not be trained as if it did not exist."""
    for key, value in usual.items():
        if (found := get.any(key)) is not None and found != value:
            raise UnsupportedError(f"{get.gguf.path} has {get.arch}.{key} = {str(found)[:60]}",
                                   f"edgetune trains models where it is {value}")


def read_windows(get: MetadataReader, n_layer: int, window: int, every: int, first: bool = False) -> tuple[int, ...]:
    """A block's window, 0 where it sees everything: so does every n-th block, or the file lists those with a window.

    every: n where the file does not say it. first: whether a group of n begins with the block that sees everything, or
    ends with it.
    """
    pattern = get.any("attention.sliding_window_pattern")
    if isinstance(pattern, list):
        if len(pattern) != n_layer:
            raise FormatError(f"{get.gguf.path} lists {len(pattern)} windows for {n_layer} blocks", "convert it again")
        return tuple(window if flag else 0 for flag in pattern)
    n = int(pattern) if pattern is not None else every
    return tuple(window if n == 0 or (i if first else i + 1) % n else 0 for i in range(n_layer))
