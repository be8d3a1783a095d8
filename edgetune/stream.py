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
from collections.abc import Iterable
from dataclasses import dataclass

from .gguf import Gguf, Tensor

AROUND = 64 << 10  # bytes that the kernel maps around one that is touched, in each direction at most
EMBEDDING = -1  # the part before block 0; the head is the one after the last block
NOWHERE = -2


@dataclass(frozen=True)
class Sizes:
    """Bytes of the weights of each block, of the embedding and of the head; where these are one, head is 0."""

    blocks: tuple[int, ...]
    embedding: int
    head: int

    @property
    def total(self) -> int:
        return sum(self.blocks) + self.embedding + self.head

    def mapped(self, streamed: int) -> int:
        """Bytes in memory at most when the first `streamed` blocks, embedding and head are streamed; 0: nothing is."""
        if not streamed:
            return self.total
        widest = max(*self.blocks[:streamed], self.embedding, self.head)
        return sum(self.blocks[streamed:]) + widest + 2 * AROUND * (len(self.blocks) - streamed > 0)

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
    for tensor in tensors:
        if (part := part_of(tensor.name, n_layer)) is not None:
            parts[part] += tensor.data.nbytes
    return Sizes(tuple(parts[i] for i in range(n_layer)), parts[EMBEDDING], parts[n_layer])


class Stream:
    """Brings the first `streamed` blocks of a model, its embedding and its head into memory when they are used.

    `streamed` 0: does nothing, all weights stay once they were read.
    """

    def __init__(self, gguf: Gguf, n_layer: int, streamed: int = 0) -> None:
        self.streamed, self._mapping, self._at = streamed, gguf.metadata.mapping, NOWHERE
        self._parts: dict[int, list[tuple[int, int]]] = {}
        if not streamed:
            return
        start = gguf.data.ctypes.data
        for name, tensor in gguf.tensors.items():
            part = part_of(name, n_layer)
            if part is not None and (part in (EMBEDDING, n_layer) or part < streamed):
                begin = tensor.data.ctypes.data - start
                _append(self._parts.setdefault(part, []), begin, begin + tensor.data.nbytes)
        self._parts.setdefault(n_layer, self._parts[EMBEDDING])  # one tensor may be both
        self._file = os.open(gguf.path, os.O_RDONLY | os.O_CLOEXEC)
        weakref.finalize(self, os.close, self._file)

    def enter(self, part: int, then: int | None = None) -> None:
        """From now on `part` is used, after it (as far as that is known) `then`; what was used before is let go of."""
        if not self.streamed or part == self._at:
            return
        for begin, end in self._ranges(self._at):
            first = begin // mmap.PAGESIZE * mmap.PAGESIZE
            self._mapping.madvise(mmap.MADV_DONTNEED, first, end - first)
            os.posix_fadvise(self._file, begin, end - begin, os.POSIX_FADV_DONTNEED)
        for begin, end in self._ranges(then):
            os.posix_fadvise(self._file, begin, end - begin, os.POSIX_FADV_WILLNEED)
        self._at = part

    def leave(self) -> None:
        """After a pass: nothing that is streamed stays."""
        self.enter(NOWHERE)

    def _ranges(self, part: int | None) -> list[tuple[int, int]]:
        return [] if part is None else self._parts.get(part, [])


def _append(ranges: list[tuple[int, int]], begin: int, end: int) -> None:
    """Tensors that lie side by side become one range."""
    if ranges and 0 <= begin - ranges[-1][1] < mmap.PAGESIZE:
        begin = ranges.pop()[0]
    ranges.append((begin, end))
