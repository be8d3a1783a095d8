"""Keys and values of a sequence, in the form in which llama.cpp saves and restores it.

A saved sequence is: u32 magic, i32 sequence, then each cache; a model with sliding windows has two, that of the blocks
with a window second. A cache is: u32 streams (1), u32 cells; for each cell i32 position, u32 number of sequences that
hold it (1) and i32 sequence; u32 whether values are transposed (0), u32 blocks; for each block its keys, as i32 type,
u64 bytes of a row, rows; then for each block its values likewise. Source: llama.cpp, src/llama-context.cpp and
src/llama-kv-cache.cpp.

P cells at positions 0 to P - 1; N = G * C values of a cell in one block, G heads of width C.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ..errors import UnsupportedError

F16 = 1  # llama.cpp's number of the type
MAGIC = 4  # bytes
KeyValues = Mapping[int, "tuple[NDArray[np.float32], NDArray[np.float32]]"]
"""The keys, as they are after rotation, and the values [P, N] of each block, by its number."""


@dataclass(frozen=True, eq=False)
class KvPrefix:
    """What a sequence begins with that need not be computed. size: its cells, P. tokens: those that it stands for; []:
    virtual ones. saved: as llama.cpp restores it.
    """

    size: int
    tokens: Sequence[int]
    saved: bytearray

    @property
    def virtual(self) -> int:
        """Positions before the first token."""
        return self.size - len(self.tokens)

    def begins(self, tokens: Sequence[int]) -> bool:
        """Whether a text of these tokens may begin with it."""
        return list(tokens[:len(self.tokens)]) == list(self.tokens)


def read_keys(saved: bytearray, windows: Sequence[int]) -> KeyValues:
    """The keys and values of a saved sequence. windows: of each block; 0: it sees everything. Raises UnsupportedError
    for a layout that is not the one above.
    """
    reader = _StateReader(saved)
    reader.take("Ii")
    found: dict[int, tuple[NDArray[np.float32], NDArray[np.float32]]] = {}
    for blocks in _caches(windows):
        found |= zip(blocks, reader.cache(len(blocks)), strict=True)
    reader.check(reader.at == len(saved), f"it has {len(saved)} bytes, and {reader.at} were read")
    return found


def saved_keys(magic: bytes, windows: Sequence[int], found: KeyValues) -> bytearray:
    """The inverse of read_keys, of sequence 0. magic: the first MAGIC bytes of any saved sequence."""
    saved = bytearray(magic + struct.pack("<i", 0))
    for blocks in _caches(windows):
        size = len(found[blocks[0]][0])
        saved += struct.pack("<II", 1, size)
        for position in range(size):
            saved += struct.pack("<iIi", position, 1, 0)
        saved += struct.pack("<II", 0, len(blocks))
        for which in (0, 1):
            for block in blocks:
                rows = found[block][which].astype(np.float16)
                saved += struct.pack("<iQ", F16, rows.shape[1] * rows.itemsize) + rows.tobytes()
    return saved


def _caches(windows: Sequence[int]) -> list[list[int]]:
    """The blocks of each cache that a model has."""
    caches = [[i for i, window in enumerate(windows) if not window], [i for i, window in enumerate(windows) if window]]
    return [blocks for blocks in caches if blocks]


class _StateReader:
    def __init__(self, data: bytearray) -> None:
        self.data = data
        self.at = 0

    def take(self, form: str) -> tuple[int, ...]:
        found = struct.unpack_from(f"<{form}", self.data, self.at)
        self.at += struct.calcsize(f"<{form}")
        return found

    def check(self, holds: bool, what: str) -> None:
        if not holds:
            raise UnsupportedError(f"llama.cpp stores keys and values in a way that is not known here: {what}",
                                   "install the version of llama-cpp-python that edgetune names")

    def cache(self, blocks: int) -> Iterator[tuple[NDArray[np.float32], NDArray[np.float32]]]:
        """Keys and values of each block of a cache."""
        streams, cells = self.take("II")
        self.check(streams == 1, f"{streams} streams")
        for expected in range(cells):
            position, holders, _ = self.take("iIi")
            self.check((position, holders) == (expected, 1), f"cell {expected} is at {position}, of {holders}")
        transposed, stored = self.take("II")
        self.check(not transposed and stored == blocks, f"transposed {transposed}, {stored} blocks of {blocks}")
        keys = [self._rows(cells) for _ in range(blocks)]
        values = [self._rows(cells) for _ in range(blocks)]
        return zip(keys, values, strict=True)

    def _rows(self, cells: int) -> NDArray[np.float32]:
        kind, width = self.take("iQ")
        self.check(kind == F16, f"type {kind}")
        begin = self.at
        self.at += cells * width
        rows = np.frombuffer(self.data, np.float16, cells * width // 2, begin)
        return rows.reshape(cells, -1).astype(np.float32)
