"""What sequences hold of a cache: blocks of keys and values, and slots of states, of blocks without keys
(models/states.py). Several may hold one, until one of them changes it.

A block has CACHE tokens. A sequence writes to a block that nobody else holds: of another one it takes a copy first.

A state cannot become that of fewer tokens. So a sequence keeps those after each piece of its prompt, as long as there
is room: a text that begins alike continues one of them. While tokens are drawn one by one, they change one state.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from ..backends.base import CACHE
from ..errors import EdgetuneError
from ..models.states import ZEROS


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


ROOM = 64 << 20  # bytes for states that only other texts may continue, if these are more than LEAST
LEAST = 4
MOST = 64


def slots_of(sequences: int, state_bytes: int) -> int:
    """Slots for this number of sequences, and for earlier states of theirs."""
    return sequences + 1 + max(LEAST, min(MOST, ROOM // state_bytes)) if state_bytes else 0


class SharedStates:
    """The slots 0 to count - 1, by sequence. At most count - 1 sequences may hold a state."""

    def __init__(self, count: int) -> None:
        self._count = count
        self.clear()

    def clear(self) -> None:
        self._free = list(range(self._count))[::-1]
        self._holders: Counter[int] = Counter()
        self._used: dict[int, None] = {}  # slots in the order of their last use
        self._lasting: set[int] = set()  # those that a piece of a prompt has left
        self._sequences: dict[int, dict[int, int]] = {}  # the slot of the state after a number of tokens, ascending

    def held(self, sequence: int, count: int) -> int:
        """The most tokens of a sequence, at most `count`, after which it holds a state; 0: none."""
        return max((size for size in self._sequences.get(sequence, ()) if size <= count), default=0)

    def cut(self, sequence: int, count: int) -> None:
        """Lets a sequence forget its states after more than `count` tokens."""
        states = self._sequences.get(sequence, {})
        for size in [size for size in states if size > count]:
            self._let_go(states.pop(size))
        if not states:
            self._sequences.pop(sequence, None)

    def copy(self, source: int, sequence: int, count: int) -> None:
        """Lets an empty sequence hold the states of another one after at most `count` tokens."""
        states = {size: slot for size, slot in self._sequences.get(source, {}).items() if size <= count}
        if states:
            self._sequences[sequence] = states
            self._holders.update(states.values())

    def extend(self, sequence: int, begin: int, count: int) -> tuple[int, int]:
        """The slot in which `count` tokens change the state after the first `begin`, the last that the sequence holds;
        and the slot from which it is copied before, which may be the same; ZEROS: none, the text begins.

        Raises EdgetuneError where the sequence does not hold that state.
        """
        states = self._sequences.setdefault(sequence, {})
        source = states.get(begin, ZEROS)
        if begin and source == ZEROS:
            raise EdgetuneError(f"the state after {begin} tokens of a text is no longer kept", "ask again")
        slot = source
        if source == ZEROS or self._holders[source] > 1 or source in self._lasting:
            slot = self._take()
            self._holders[slot] = 1
        else:
            del states[begin]
        states[begin + count] = slot
        if count > 1:
            self._lasting.add(slot)
        for each in {source, slot} - {ZEROS}:
            self._used.pop(each, None)
            self._used[each] = None
        return slot, source

    def _take(self) -> int:
        """A free slot, or that of the state whose last use is the oldest and that no sequence ends with."""
        if not self._free:
            ends = {states[max(states)] for states in self._sequences.values() if states}
            oldest = next(slot for slot in self._used if slot not in ends)
            for states in self._sequences.values():
                for size in [size for size, slot in states.items() if slot == oldest]:
                    del states[size]
                    self._let_go(oldest)
        return self._free.pop()

    def _let_go(self, slot: int) -> None:
        self._holders[slot] -= 1
        if not self._holders[slot]:
            del self._holders[slot]
            self._used.pop(slot, None)
            self._lasting.discard(slot)
            self._free.append(slot)
