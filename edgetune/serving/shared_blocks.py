"""The blocks of a cache of keys and values that sequences hold: several may hold one, until one of them changes it.

A block has CACHE tokens. A sequence writes to a block that nobody else holds: of another one it takes a copy first.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from ..backends.base import CACHE
from ..errors import EdgetuneError


def blocks_of(tokens: int, sequences: int) -> int:
    """The blocks that this number of tokens takes at most in this number of sequences, where shared tokens count once:
    each sequence may have a block that is not full, and a copy of one that it shares.
    """
    return -(-tokens // CACHE) + 2 * sequences


@dataclass
class _Held:
    """What a sequence holds: its blocks in order, and the number of its tokens."""

    blocks: list[int] = field(default_factory=list)
    size: int = 0


class SharedBlocks:
    """The blocks 0 to count - 1 of a cache, by sequence."""

    def __init__(self, count: int) -> None:
        self._count = count
        self.clear()

    def clear(self) -> None:
        self._free = list(range(self._count))[::-1]
        self._holders: Counter[int] = Counter()
        self._sequences: dict[int, _Held] = {}

    def held(self, sequence: int, count: int) -> int:
        """The tokens that a sequence has, at most `count`."""
        held = self._sequences.get(sequence)
        return min(held.size, count) if held else 0

    def cut(self, sequence: int, count: int) -> None:
        """Lets a sequence have its first `count` tokens alone."""
        held = self._sequences.get(sequence)
        if held is None or held.size <= count:
            return
        needed = -(-count // CACHE)
        for block in held.blocks[needed:]:
            self._let_go(block)
        del held.blocks[needed:]
        held.size = count
        if not count:
            del self._sequences[sequence]

    def copy(self, source: int, sequence: int, count: int) -> None:
        """Lets an empty sequence hold the first `count` tokens of another one, as many as it has."""
        held = self._sequences.get(source)
        count = min(count, held.size) if held else 0
        if held is None or not count:
            return
        blocks = held.blocks[:-(-count // CACHE)]
        self._holders.update(blocks)
        self._sequences[sequence] = _Held(blocks, count)

    def extend(self, sequence: int, count: int) -> tuple[NDArray[np.int32], list[tuple[int, int]]]:
        """Room for `count` tokens more: their slots [count], and the blocks to copy before they are written, each as
        (from, to). Raises EdgetuneError where no block is free.
        """
        held = self._sequences.setdefault(sequence, _Held())
        copies = []
        if held.size % CACHE and self._holders[held.blocks[-1]] > 1:
            own = self._take()
            copies.append((held.blocks[-1], own))
            self._let_go(held.blocks[-1])
            held.blocks[-1] = own
        places = np.arange(held.size, held.size + count)
        while len(held.blocks) * CACHE < held.size + count:
            held.blocks.append(self._take())
        held.size += count
        return (np.array(held.blocks)[places // CACHE] * CACHE + places % CACHE).astype(np.int32), copies

    def paths(self, sequence: int, count: int) -> NDArray[np.int32]:
        """The paths of the last `count` tokens of a sequence, [count, P]: each has the slot of the last token that it
        sees of each block, and -1 for blocks that it does not see.
        """
        held = self._sequences[sequence]
        blocks = np.array(held.blocks)
        last = np.arange(held.size - count, held.size)[:, None]  # the token itself
        begin = np.arange(len(blocks)) * CACHE
        seen = np.minimum(last - begin, CACHE - 1)
        return np.where(seen >= 0, blocks * CACHE + seen, -1).astype(np.int32)

    def _take(self) -> int:
        if not self._free:
            raise EdgetuneError("the cache has no room for more keys and values", "choose a larger context")
        block = self._free.pop()
        self._holders[block] = 1
        return block

    def _let_go(self, block: int) -> None:
        self._holders[block] -= 1
        if not self._holders[block]:
            del self._holders[block]
            self._free.append(block)
