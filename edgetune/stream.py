"""Weights that stay in memory, and weights that pass through it a part at a time.

A model's parts are read in the order of a pass: the embedding, the blocks up, the head, the blocks down. Of those
that are streamed only the part at hand is mapped; while it is computed with, the kernel reads the next one ahead, and
when it is left, its pages go, the page cache's too. So the memory that a model needs does not grow with its blocks.
"""

from __future__ import annotations

import mmap
import os
import re
import weakref
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from .gguf import Gguf, Tensor

AROUND = 64 << 10  # bytes that the kernel maps around one that is touched
SLICE = 2 << 20  # bytes of the head in memory at a time
HEAD_TOKENS = 256  # in one go of the head
UNIT = 256  # entries of the vocabulary: blocks that the head computes at a time are as many, or a multiple
EMBEDDING = -1  # the part before block 0; the head is the one after the last block
NOWHERE = -2


@dataclass(frozen=True)
class Sizes:
    """Bytes of the weights of each block, of the embedding and of the head (where these are one, head is 0), and of a
    row of the embedding.
    """

    blocks: tuple[int, ...]
    embedding: int
    head: int
    row: int

    @property
    def total(self) -> int:
        return sum(self.blocks) + self.embedding + self.head

    def mapped(self, streamed: int, tokens: int) -> int:
        """Bytes in memory at most when the first `streamed` blocks, embedding and head are streamed; 0: nothing is.

        Of the embedding a micro-batch of `tokens` needs its rows alone, unless it is the head too; the end of the
        head's pass touches some of the head's.
        """
        rows = min(tokens * self.row, self.embedding)
        if not streamed:
            return sum(self.blocks) + (self.head + rows if self.head else self.embedding)
        touched = min(tokens, HEAD_TOKENS) * (self.row + AROUND)
        widest = max(*self.blocks[:streamed], rows,
                     min(touched + SLICE, self.head or self.embedding))
        return sum(self.blocks[streamed:]) + widest + 2 * AROUND * (streamed < len(self.blocks))

    def read(self, streamed: int, lowest: int) -> int:
        """Bytes read for a micro-batch: blocks up and, down to the lowest trained, down again; head; embedding."""
        if not streamed:
            return 0
        return sum(self.blocks[:streamed]) + sum(self.blocks[lowest:streamed]) + self.embedding + self.head


def part_of(name: str, n_layer: int) -> int | None:
    """The part that a tensor belongs to; None for what every pass reads, such as output_norm."""
    if found := re.match(r"blk\.(\d+)\.", name):
        return int(found[1])
    return {"token_embd.weight": EMBEDDING, "output.weight": n_layer}.get(name)


def sizes(tensors: Iterable[Tensor], n_layer: int) -> Sizes:
    parts = dict.fromkeys(range(EMBEDDING, n_layer + 1), 0)
    row = 0
    for tensor in tensors:
        if tensor.name == "token_embd.weight":
            row = tensor.data.nbytes // tensor.shape[0]
        if (part := part_of(tensor.name, n_layer)) is not None:
            parts[part] += tensor.data.nbytes
    return Sizes(tuple(parts[i] for i in range(n_layer)), parts[EMBEDDING], parts[n_layer], row)


class Stream:
    """Brings the first `streamed` blocks of a model, its embedding and its head into memory when they are used.

    `streamed` 0: all weights stay once they were read, but for an embedding that is not the head.
    """

    def __init__(self, gguf: Gguf, n_layer: int, streamed: int = 0) -> None:
        self.streamed, self._mapping, self._at = streamed, gguf.metadata.mapping, NOWHERE
        self._start = gguf.data.ctypes.data
        self._parts: dict[int, list[tuple[int, int]]] = {}
        self._reads_rows = streamed > 0 or "output.weight" in gguf.tensors
        if self._reads_rows:
            self._file = os.open(gguf.path, os.O_RDONLY | os.O_CLOEXEC)
            weakref.finalize(self, os.close, self._file)
        if not streamed:
            return
        for name, tensor in gguf.tensors.items():
            part = part_of(name, n_layer)
            if part is not None and (part in (EMBEDDING, n_layer) or part < streamed):
                begin = tensor.data.ctypes.data - self._start
                _append(self._parts.setdefault(part, []), begin, begin + tensor.data.nbytes)
        self._parts.setdefault(n_layer, self._parts[EMBEDDING])  # one tensor may be both

    def enter(self, part: int, then: int | None = None) -> None:
        """From now on `part` is used, after it (as far as that is known) `then`; what was used before is let go of."""
        if not self.streamed or part == self._at:
            return
        for begin, end in self._ranges(self._at):
            self._unmap(begin, end)
            os.posix_fadvise(self._file, begin, end - begin, os.POSIX_FADV_DONTNEED)
        for begin, end in self._ranges(then):
            os.posix_fadvise(self._file, begin, end - begin, os.POSIX_FADV_WILLNEED)
        self._at = part

    def leave(self) -> None:
        """After a pass: nothing that is streamed stays."""
        self.enter(NOWHERE)

    def rows(self, tensor: Tensor, tokens: NDArray[np.int32]) -> tuple[NDArray[np.uint8], NDArray[np.int32]]:
        """The embedding's bytes and `tokens`; or the rows that they need, and their places in these: where weights are
        streamed, or the head is another tensor.

        They are read, not mapped: around a row that is touched the kernel maps a hundred others.
        """
        if not self._reads_rows:
            return tensor.data, tokens
        found, places = np.unique(tokens, return_inverse=True)
        row = tensor.data.nbytes // tensor.shape[0]
        begin, needed = tensor.data.ctypes.data - self._start, np.empty((found.size, row), np.uint8)
        for out, token in zip(needed, found.tolist(), strict=True):
            os.preadv(self._file, [out.data], begin + token * row)
        return needed.reshape(-1), places.astype(np.int32)

    def slices(self, head: Tensor) -> Iterator[tuple[int, int]]:
        """First entry and end of parts of the vocabulary; where the head is streamed, each goes when the next comes."""
        n, begin = head.shape[0], head.data.ctypes.data - self._start
        row = head.data.nbytes // n
        step = max(SLICE // row // UNIT * UNIT, UNIT) if self.streamed else n
        for first in range(0, n, step):
            end = min(first + step, n)
            yield first, end
            if self.streamed:
                self._unmap(begin + first * row, begin + end * row)

    def _unmap(self, begin: int, end: int) -> None:
        first = begin // mmap.PAGESIZE * mmap.PAGESIZE
        self._mapping.madvise(mmap.MADV_DONTNEED, first, end - first)

    def _ranges(self, part: int | None) -> list[tuple[int, int]]:
        return [] if part is None else self._parts.get(part, [])


def _append(ranges: list[tuple[int, int]], begin: int, end: int) -> None:
    """Tensors that lie side by side become one range."""
    if ranges and 0 <= begin - ranges[-1][1] < mmap.PAGESIZE:
        begin = ranges.pop()[0]
    ranges.append((begin, end))
