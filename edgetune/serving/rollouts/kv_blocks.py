"""Keys and values of prompts and answers, in blocks of an arena: the users of blocks, and sharing between prompts.

Prompts share a common beginning in steps of GRANULE tokens. Attention cuts its blocks there, so that every sum is
rounded as if a prompt was read alone. With windows it cuts them at the beginning of a window: then only equal prompts
share. A block has CACHE tokens. The path of an answer is the slot of the last token of each block that it sees, in
order.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from ...backends.base import CACHE
from ...data.forest import Tokens
from ...data.packing import Batch
from ...errors import EdgetuneError
from ...models.states import ZEROS

GRANULE = 64
WHOLE = 1 << 30  # a step that no prompt reaches
Path = NDArray[np.int32]
_NOTHING = np.empty(0, np.int64)


def blocks_for(tokens: int) -> int:
    """Blocks that this many consecutive tokens take."""
    return -(-tokens // CACHE)


@dataclass(eq=False)
class Segment:
    """Tokens that some prompts have at the same place, a step at most, and the blocks that hold them."""

    parent: Segment | None
    tokens: Tokens
    begin: int  # the position of the first
    blocks: list[int] = field(default_factory=list)
    children: dict[bytes, Segment] = field(default_factory=dict)
    users: int = 0  # prompts that end here, and children
    slot: int = ZEROS  # of the state at its end, while it is read

    def slots(self) -> NDArray[np.int32]:
        """The place of each of its tokens."""
        return slots_of(self.blocks, self.tokens.size)

    def path(self) -> Path:
        """The path of a text that ends with this segment."""
        before = self.parent.path() if self.parent else np.empty(0, np.int32)
        slots = self.slots()
        ends = np.minimum(np.arange(1, len(self.blocks) + 1) * CACHE, slots.size) - 1
        return np.concatenate([before, slots[ends]])


def slots_of(blocks: Sequence[int], tokens: int) -> NDArray[np.int32]:
    places = np.arange(tokens)
    return (np.asarray(blocks)[places // CACHE] * CACHE + places % CACHE).astype(np.int32)


class FreeBlocks:
    """The free blocks."""

    def __init__(self, count: int) -> None:
        self._free = list(range(count))[::-1]

    def __len__(self) -> int:
        return len(self._free)

    def take(self, count: int) -> list[int]:
        if count > len(self._free):
            raise EdgetuneError(f"{count} blocks of keys and values are needed and {len(self._free)} are free",
                                "plan for longer prompts")
        return [self._free.pop() for _ in range(count)]

    def give_back(self, blocks: list[int]) -> None:
        self._free += blocks
        blocks.clear()

    def release(self, segment: Segment | None) -> None:
        """Removes one user of a segment; segments without users become free."""
        while segment is not None:
            segment.users -= 1
            if segment.users:
                return
            self.give_back(segment.blocks)
            segment = segment.parent


@dataclass(frozen=True)
class PromptReading:
    """Prompts that are read together. slots [T]: for keys and values of the batch's tokens. segments: the last of each
    prompt; places: of its last token in the batch. runs: as of models/states.py, which leave the state at the end of a
    prompt in the slot of its index after the first.
    """

    batch: Batch
    slots: NDArray[np.int32]
    segments: list[Segment]
    places: NDArray[np.int64]
    runs: NDArray[np.int32]


def read_together(prompts: Sequence[Tokens], blocks: FreeBlocks, step: int, slot: int) -> PromptReading:
    """The forest of prompts of at least one token, which branch at multiples of `step`; takes blocks for it. slot: the
    first for their states.
    """
    roots: dict[bytes, Segment] = {}
    segments = [_insert(roots, prompt, step) for prompt in prompts]
    order = list(_depth_first(roots))
    for segment in order:
        segment.blocks = blocks.take(blocks_for(segment.tokens.size))
    sizes = np.array([segment.tokens.size for segment in order])
    ends = dict(zip(order, np.cumsum(sizes).tolist(), strict=True))
    within = [max(ends[below] for below in (segment, *_depth_first(segment.children))) for segment in order]
    places = np.array([ends[segment] - 1 for segment in segments])
    batch = forward_batch(np.concatenate([segment.tokens for segment in order]),
                          np.concatenate([np.arange(s.begin, s.begin + s.tokens.size) for s in order]),
                          np.repeat(within, sizes), places)
    return PromptReading(batch, np.concatenate([segment.slots() for segment in order]), segments, places,
                         _runs(order, segments, slot))


def _runs(order: Sequence[Segment], segments: Sequence[Segment], slot: int) -> NDArray[np.int32]:
    """A run a segment; the last child continues its parent's state in place, the others and prompts copy it first."""
    ending: dict[Segment, list[int]] = {}
    for number, segment in enumerate(segments, start=slot):
        ending.setdefault(segment, []).append(number)
    for segment in reversed(order):
        children = list(segment.children.values())
        segment.slot = children[-1].slot if children else ending[segment].pop()
    runs = []
    begin = 0
    for segment in order:
        end = begin + segment.tokens.size
        runs.append((begin, end, segment.slot, segment.parent.slot if segment.parent else ZEROS))
        runs += [(end, end, copy, segment.slot) for copy in ending.get(segment, ())]
        begin = end
    return np.array(runs, np.int32)


def forest_size(prompts: Sequence[Tokens], step: int) -> tuple[int, int]:
    """(tokens to compute, blocks to take) of prompts that are read together."""
    roots: dict[bytes, Segment] = {}
    for prompt in prompts:
        _insert(roots, prompt, step)
    sizes = [segment.tokens.size for segment in _depth_first(roots)]
    return sum(sizes), sum(map(blocks_for, sizes))


def forward_batch(tokens: NDArray[np.int32], positions: NDArray[np.int64], ends: NDArray[np.int64],
                  read: NDArray[np.int64]) -> Batch:
    """A batch of tokens without targets. read: the tokens from which something is predicted."""
    return Batch(tokens.astype(np.int32), positions.astype(np.int32), ends.astype(np.int32), read,
                 _NOTHING.astype(np.int32), _NOTHING.astype(np.float32), ())


def _insert(roots: dict[bytes, Segment], prompt: Tokens, step: int) -> Segment:
    """The segment with which a prompt ends."""
    parent: Segment | None = None
    among = roots
    for begin in range(0, prompt.size, step):
        part = prompt[begin:begin + step]
        segment = among.get(part.tobytes())
        if segment is None:
            segment = among[part.tobytes()] = Segment(parent, part, begin)
            if parent is not None:
                parent.users += 1
        parent = segment
        among = segment.children
    assert parent is not None
    parent.users += 1
    return parent


def _depth_first(segments: dict[bytes, Segment]) -> Iterator[Segment]:
    """Yields each segment, followed by its subtree."""
    for segment in segments.values():
        yield segment
        yield from _depth_first(segment.children)
