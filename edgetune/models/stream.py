"""Weights that stay in memory, and weights that are streamed: read from the file, a part at a time, at every use.

A model's parts are used in the order of a pass: the embedding, the blocks up, the head, the blocks down. Of the
streamed parts only the one in use is in memory: it is read into a buffer, the kernel reads the next one ahead
meanwhile, and after its use its pages leave the page cache. So the memory that a model needs does not grow with the
number of its blocks.

Of a block with a mixture of experts those are read that its tokens take, once the router has said so: few of them
ahead, each before its product; most of them at once. Before that the kernel reads ahead where a pass goes down through
the blocks, which it went up with the same tokens.

Streamed weights are not mapped: a page fault also maps what surrounds it in the page cache, 64 KiB or up to 2 MiB,
depending on how the file was read or written, so that the memory could not be planned. Weights that stay are mapped:
the plan counts all of them.
"""

from __future__ import annotations

import contextlib
import mmap
import os
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from ..backends.arena import ALIGN, Arena, Buffer
from ..backends.base import Backend
from ..formats.block_sizes import TABLE
from ..formats.gguf import Gguf, Tensor

PAGE = mmap.PAGESIZE
SLICE = 2 << 20  # bytes of the head in memory at a time
HEAD_TOKENS = 256  # in one call of the head's op
UNIT = 256  # entries of the vocabulary; the head computes a multiple of it at a time
NORESERVE = 0x4000  # MAP_NORESERVE of Linux: address space, no promise of memory; Python has a name for it from 3.13
EMBEDDING = -1  # the part before block 0; the head is the one after the last block
NOWHERE = -2
MOST = 0.75  # of a block's experts, from which they are read fastest in the order of the file
READ_BY_ROWS = (TABLE,)  # matrices that are never in memory as a whole


@dataclass(frozen=True)
class WeightBytes:
    """Bytes of the weights of each block, of the embedding, of the head (0 where it is the embedding), and of a row of
    the embedding. head_stays: whether the head is never streamed; has_head: whether the network has one in the file.
    always: of matrices that always stay.
    """

    blocks: tuple[int, ...]
    embedding: int
    head: int
    row: int
    head_stays: bool = False
    has_head: bool = True
    always: int = 0

    @property
    def total(self) -> int:
        return sum(self.blocks) + self.embedding + self.head + self.always

    @property
    def head_row(self) -> int:
        """Bytes of an entry of the vocabulary in the head, which may be the embedding."""
        return (self.head or self.embedding) * self.row // max(self.embedding, 1)

    def in_memory(self, streamed: int, tokens: int) -> int:
        """Bytes at most when the first `streamed` blocks, embedding and head are streamed; 0: nothing is.

        Of the embedding a micro-batch of `tokens` needs its rows alone, unless it is the head too; the end of the
        head's pass needs some of the head's, on whole pages.
        """
        return self.always + self._moving(streamed, tokens)

    def _moving(self, streamed: int, tokens: int) -> int:
        rows = min(tokens * self.row, self.embedding)
        if not self.has_head:
            widest = max(*self.blocks[:streamed], rows) + PAGE * len(self.blocks) if streamed else rows
            return sum(self.blocks[streamed:]) + widest
        if not streamed:
            return sum(self.blocks) + (self.head + rows if self.head else self.embedding)
        if self.head_stays:
            widest = max(*self.blocks[:streamed], rows)
            return sum(self.blocks[streamed:]) + (self.head or self.embedding) + widest + PAGE * len(self.blocks)
        targets = min(tokens, HEAD_TOKENS) * (self.head_row + 2 * PAGE)
        in_head = min(slice_entries(self.head_row) * self.head_row + targets, self.head or self.embedding) + 2 * PAGE
        widest = max(*self.blocks[:streamed], rows, in_head)
        return sum(self.blocks[streamed:]) + widest + PAGE * len(self.blocks)

    def read(self, streamed: int, lowest: int) -> int:
        """Bytes read for a micro-batch that takes all experts: blocks up and, down to the lowest trained, down again;
        head; embedding.
        """
        if not streamed:
            return 0
        ends = self.embedding + (0 if self.head_stays else self.head) if self.has_head else 0
        return sum(self.blocks[:streamed]) + sum(self.blocks[lowest:streamed]) + ends


def part_of(name: str, n_layer: int) -> int | None:
    """The part that a tensor belongs to; None for what is always in memory, such as output_norm; NOWHERE for what is
    not read.
    """
    if found := re.match(r"blk\.(\d+)\.", name):
        return int(found[1]) if int(found[1]) < n_layer else NOWHERE
    return {"token_embd.weight": EMBEDDING, "output.weight": n_layer}.get(name)


def sizes(tensors: Iterable[Tensor], n_layer: int, has_head: bool = True) -> WeightBytes:
    parts = dict.fromkeys(range(EMBEDDING, n_layer + 1), 0)
    row = 0
    always = 0
    for tensor in tensors:
        if tensor.name == "token_embd.weight":
            row = tensor.data.nbytes // tensor.shape[0]
        if (part := part_of(tensor.name, n_layer)) == NOWHERE:
            continue
        if part is not None:
            parts[part] += _aligned(tensor.data.nbytes)
        elif len(tensor.shape) == 2 and tensor.name not in READ_BY_ROWS:
            always += tensor.data.nbytes
    return WeightBytes(tuple(parts[i] for i in range(n_layer)), parts[EMBEDDING], parts[n_layer], row,
                       has_head=has_head, always=always)


def slice_entries(row: int) -> int:
    """Entries of the vocabulary, `row` bytes each, that are in memory at a time where the head is streamed."""
    return max(SLICE // max(row, 1) // UNIT * UNIT, UNIT)


class Stream:
    """Brings the first `streamed` blocks of a model, its embedding and its head into memory when they are used.

    `weights` has every matrix, and every stack of matrices, by name. Matrices of a streamed block are valid after
    `enter`, those of a stack after `bring`, the rows of a streamed head within `slices`. With `streamed` 0 all weights
    stay once they were read, but for an embedding that is not the head. Where the backend's memory is not paged, the
    head stays in any case. has_head: whether the file has one.
    """

    def __init__(self, gguf: Gguf, n_layer: int, ops: Backend, streamed: int = 0, has_head: bool = True) -> None:
        self.streamed = streamed
        self.weights = {name: tensor for name, tensor in gguf.tensors.items() if len(tensor.shape) > 1}
        self._gguf = gguf
        self._ops = ops
        self._at = NOWHERE
        self._reads_rows = streamed > 0 or "output.weight" in gguf.tensors or not has_head
        self._parts: dict[int, list[Tensor]] = {}
        for tensor in gguf.tensors.values():
            if (part := part_of(tensor.name, n_layer)) not in (None, NOWHERE):
                self._parts.setdefault(part, []).append(tensor)
        self._streamed_parts = {EMBEDDING} if self._reads_rows else set()  # the others stay in memory
        if streamed:
            if has_head:
                self._parts.setdefault(n_layer, self._parts[EMBEDDING])  # one tensor may be both
            self._streamed_parts |= {*range(streamed), *([n_layer] if ops.is_paged and has_head else [])}
        self._bound_faults()
        self._expected: set[int] = set()  # experts of the part in use that were read ahead
        self._there: set[tuple[str, int]] = set()  # those that are valid, by stack
        self._taken: dict[int, set[int]] = {}  # the experts that a part used last
        self._window: _Window | None = None
        if streamed:
            self._buffer = self._place_blocks()
        if n_layer in self._streamed_parts:
            self._window = _Window(gguf, self._parts[n_layer][0])
            self.weights[self._window.tensor.name] = self._window.tensor
        for part in self._parts.keys() - self._streamed_parts:
            for tensor in self._parts[part]:
                if tensor.name in self.weights:
                    self.weights[tensor.name] = replace(tensor, data=ops.upload(tensor.data))

    @property
    def head(self) -> Tensor:
        """The matrix that makes logits, as `weights` has it."""
        return self.weights.get("output.weight", self.weights["token_embd.weight"])

    def enter(self, part: int, then: int | None = None) -> None:
        """Makes `part` valid and the part before it invalid. then: the part that follows, if known, to read ahead.

        Raises FormatError where the file is shorter than it was.
        """
        if not self.streamed or part == self._at:
            return
        self._advise(self._at, os.POSIX_FADV_DONTNEED)
        goes_down = then is not None and then < part
        self._at = NOWHERE  # until it is read
        self._expected = set()
        self._there = set()
        if 0 <= part < self.streamed:
            self._ops.synchronize()  # the part before is still read
            for tensor in self._parts[part]:
                if len(tensor.shape) == 2:
                    self._gguf.file.read_into(self.weights[tensor.name].data, self._gguf.offset(tensor))
        elif self._ops.is_paged:
            self._buffer.release()
        self._at = part
        if then is not None:
            self._read_ahead(then, goes_down)

    def expect(self, part: int, experts: Sequence[int]) -> None:
        """Prepares these matrices of all stacks of `part`, which was entered: each is brought next. Few are read ahead,
        which takes less time than one wait each; most are read, in the order of the file.
        """
        if not 0 <= part < self.streamed or self._expected.issuperset(experts):
            return
        ranges = self._expert_ranges(part, {*experts} - self._expected)
        self._expected |= {*experts}
        self._taken[part] = self._expected
        is_most = self._are_most(part)
        for name, first, end, size in ranges:
            begin = self._gguf.offset(self._gguf.tensors[name]) + first * size
            if is_most:
                self._gguf.file.read_into(self.weights[name].data[first * size:end * size], begin)
                self._there |= {(name, i) for i in range(first, end)}
            else:
                os.posix_fadvise(self._gguf.file.handle, begin, (end - first) * size, os.POSIX_FADV_WILLNEED)

    def bring(self, part: int, name: str, expert: int) -> None:
        """Makes a matrix of the stack `name` of `part` valid, which was entered; others that are there stay. Errors:
        enter's.
        """
        if not 0 <= part < self.streamed or (name, expert) in self._there:
            return
        matrix = self.weights[name].matrix(expert).data
        begin = self._gguf.offset(self._gguf.tensors[name]) + expert * matrix.nbytes
        self._gguf.file.read_into(matrix, begin)
        self._there.add((name, expert))

    def _read_ahead(self, part: int, goes_down: bool) -> None:
        """Tells the kernel which bytes of a part will be read, as far as that is known."""
        self._advise(part, os.POSIX_FADV_WILLNEED)
        if goes_down and not self._are_most(part):
            for name, first, end, size in self._expert_ranges(part, self._taken.get(part, set())):
                begin = self._gguf.offset(self._gguf.tensors[name]) + first * size
                os.posix_fadvise(self._gguf.file.handle, begin, (end - first) * size, os.POSIX_FADV_WILLNEED)

    def _are_most(self, part: int) -> bool:
        """Whether a part last used most of its experts."""
        return any(len(self._taken.get(part, ())) >= MOST * stack.shape[0] for stack in self._stacks(part))

    def _stacks(self, part: int) -> list[Tensor]:
        return [tensor for tensor in self._parts.get(part, ()) if len(tensor.shape) == 3]

    def _expert_ranges(self, part: int, experts: set[int]) -> list[tuple[str, int, int, int]]:
        """(stack, first, end, bytes of one) of these matrices of a part's stacks; neighbours are one range."""
        firsts = sorted(i for i in experts if i - 1 not in experts)
        ends = sorted(i + 1 for i in experts if i + 1 not in experts)
        return [(stack.name, first, end, stack.data.nbytes // stack.shape[0]) for stack in self._stacks(part)
                for first, end in zip(firsts, ends, strict=True)]

    def leave(self) -> None:
        """Drops all that is streamed, after a pass."""
        self.enter(NOWHERE)

    def rows(self, tokens: NDArray[np.int32]) -> tuple[Tensor, NDArray[np.int32]]:
        """A matrix of embeddings, and the row of each token in it. Raises FormatError where the file was changed.

        That is the whole embedding and `tokens` themselves; or, where weights are streamed or the head is another
        tensor, only the rows that the tokens need.
        """
        self._gguf.file.check()
        if not self._reads_rows:
            return self.weights["token_embd.weight"], self._ops.place(tokens)
        embedding = self._gguf.tensors["token_embd.weight"]
        found, places = np.unique(tokens, return_inverse=True)
        row = embedding.data.nbytes // embedding.shape[0]
        begin = self._gguf.offset(embedding)
        needed = self._ops.empty((found.size, row), np.uint8)
        for out, token in zip(needed, found.tolist(), strict=True):
            self._gguf.file.read_into(out, begin + token * row)
        read = replace(embedding, shape=(found.size, embedding.shape[1]), data=needed.reshape(-1))
        return read, self._ops.place(places.astype(np.int32))

    @property
    def streams_head(self) -> bool:
        return self._window is not None

    def slices(self, targets: NDArray[np.int32]) -> Iterator[tuple[int, int]]:
        """First entry and end of parts of the vocabulary. Where the head is streamed, only the current part is in
        memory, and with the last one the rows of `targets`, which the end of the head's pass reads.
        """
        n = self.head.shape[0]
        if self._window is None:
            yield 0, n
            return
        step = slice_entries(self._window.row)
        try:
            for first in range(0, n, step):
                end = min(first + step, n)
                self._window.read(first, end)
                if end == n:
                    for target in np.unique(targets).tolist():
                        self._window.read(target, target + 1)
                yield first, end
                self._window.release(first, end)
        finally:
            self._window.release(0, n)

    def _place_blocks(self) -> Arena:
        """Places all streamed blocks into one buffer, as large as the largest, each from its beginning."""
        blocks = [[tensor for tensor in self._parts[i] if tensor.name in self.weights] for i in range(self.streamed)]
        nbytes = max(sum(_aligned(tensor.data.nbytes) for tensor in block) for block in blocks)
        arena = Arena([Buffer("weights", (nbytes,), "step", "uint8")], self._ops.allocate)
        for block in blocks:
            begin = 0
            for tensor in block:
                place = arena.flat("weights")[begin:begin + tensor.data.nbytes]
                self.weights[tensor.name] = replace(tensor, data=place)
                begin += _aligned(tensor.data.nbytes)
        return arena

    def _bound_faults(self) -> None:
        """Keeps a page fault on weights that stay from mapping others: it does not cross a change of the advice."""
        mapping = self._gguf.file.mapping
        mapping.madvise(mmap.MADV_SEQUENTIAL)  # the header, and streamed weights
        for part in self._parts.keys() - self._streamed_parts:
            for begin, end in self._ranges(part):
                first = begin // PAGE * PAGE
                mapping.madvise(mmap.MADV_NORMAL, first, end - first)

    def _advise(self, part: int | None, advice: int) -> None:
        """Tells the kernel whether a streamed part's bytes in the page cache will be needed; those of experts are never
        needed for sure.
        """
        if part in self._streamed_parts:
            is_needed = advice == os.POSIX_FADV_WILLNEED
            for begin, end in self._ranges(part, 2 if is_needed else 3):
                os.posix_fadvise(self._gguf.file.handle, begin, end - begin, advice)

    def _ranges(self, part: int, dimensions: int = 3) -> list[tuple[int, int]]:
        """The ranges of the file that hold a part, but for tensors of more dimensions; adjacent tensors are one range.
        """
        ranges: list[tuple[int, int]] = []
        for tensor in self._parts[part]:
            if len(tensor.shape) > dimensions:
                continue
            begin = self._gguf.offset(tensor)
            if ranges and 0 <= begin - ranges[-1][1] < PAGE:
                begin = ranges.pop()[0]
            ranges.append((begin, self._gguf.offset(tensor) + tensor.data.nbytes))
        return ranges


class _Window:
    """A stored matrix in address space, each row at its place; only the rows that were read take memory."""

    def __init__(self, gguf: Gguf, stored: Tensor) -> None:
        self.row = stored.data.nbytes // stored.shape[0]
        self._file = gguf.file
        self._begin = gguf.offset(stored)
        self._mapping = mmap.mmap(-1, stored.data.nbytes, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | NORESERVE)
        with contextlib.suppress(OSError):  # a huge page would also hold rows that were not read
            self._mapping.madvise(mmap.MADV_NOHUGEPAGE)
        self.tensor = replace(stored, data=np.frombuffer(self._mapping, np.uint8)[:stored.data.nbytes])

    def read(self, first: int, end: int) -> None:
        """Reads rows first .. end - 1."""
        place = slice(first * self.row, end * self.row)
        self._file.read_into(self.tensor.data[place], self._begin + place.start)

    def release(self, first: int, end: int) -> None:
        """Releases the pages of these rows, also those shared with other rows."""
        begin = first * self.row // PAGE * PAGE
        self._mapping.madvise(mmap.MADV_DONTNEED, begin, end * self.row - begin)


def _aligned(nbytes: int) -> int:
    return -(-nbytes // ALIGN) * ALIGN
