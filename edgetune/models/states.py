"""The states of sequences in a pass of answers: what blocks without keys keep of earlier tokens (sublayer.py: Mixer).

A state cannot become that of fewer tokens. It is in a slot of the cache, where its next tokens change it.
T tokens of a pass, R runs of them, L taps of a convolution.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from ..backends.base import Array, bf16, floats

BEGIN, END, SLOT, SOURCE = range(4)
ZEROS = -1


class States:
    """runs: (begin, end, slot, source) in the order of T, int32 [R, 4]. The tokens from begin to end - 1 continue the
    state in `slot`, and change it. Before that it becomes that in `source`, where this is another slot: as an earlier
    run left it, or an earlier pass; ZEROS: it becomes zeros. A run without tokens only copies.

    before: the token before each in this pass, [T]; -1 where there is none. arrays: by name and block, float32
    [slots, ...].
    """

    def __init__(self, runs: NDArray[np.int32], before: NDArray[np.int32],
                 arrays: Mapping[str, Mapping[int, Array]]) -> None:
        self.runs = runs
        self.before = before
        self._arrays = arrays
        self._tails: dict[int, Tails] = {}

    def of(self, layer: int, name: str) -> Array:
        """The states of a block, float32 [slots, ...]."""
        return self._arrays[name][layer]

    def tails(self, taps: int) -> Tails:
        """What convolutions of this many taps continue."""
        if taps not in self._tails:
            self._tails[taps] = Tails(self, taps)
        return self._tails[taps]


class Tails:
    """The last inputs of a causal convolution of L taps, which its next outputs see. `count` rows of them are before
    the rows of the pass's tokens: L - 1 of each run that continues a state of an earlier pass.
    """

    def __init__(self, states: States, taps: int) -> None:
        runs = states.runs
        self._states = states
        self._taps = taps
        is_kept = (runs[:, BEGIN] < runs[:, END]) & (runs[:, SOURCE] != ZEROS)
        is_kept[is_kept] = states.before[runs[is_kept, BEGIN]] < 0
        self._continued = runs[is_kept]
        self.count = len(self._continued) * (taps - 1)

    @cached_property
    def before(self) -> NDArray[np.int32]:
        """The row before each of these rows and of the tokens, int32 [count + T]."""
        older = np.arange(-1, self.count - 1, dtype=np.int32)
        older[::self._taps - 1] = -1
        tokens = np.where(self._states.before < 0, -1, self._states.before + self.count).astype(np.int32)
        tokens[self._continued[:, BEGIN]] = np.arange(1, len(self._continued) + 1) * (self._taps - 1) - 1
        return np.concatenate([older, tokens])

    @cached_property
    def _last(self) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """The slots that runs leave a state in, and the rows of the last L - 1 inputs of each, oldest first; -1: none.
        """
        ends = {int(slot): int(end) - 1 for _, end, slot, _ in self._states.runs}
        rows = np.full((len(ends), self._taps - 1), -1)
        row = np.array(list(ends.values())) + self.count
        for column in range(self._taps - 2, -1, -1):
            rows[:, column] = row
            row = np.where(row < 0, -1, self.before[row])
        return np.array(list(ends)), rows

    def load(self, rows: Array, state: Array) -> None:
        """Sets the first `count` of rows [count + T, ...] from the block's states [slots, L - 1, ...]."""
        found = state[self._continued[:, SOURCE]].reshape(self.count, *state.shape[2:])
        rows[:self.count] = found if rows.dtype == np.float32 else bf16(found)

    def store(self, state: Array, rows: Array) -> None:
        """Sets the block's states [slots, L - 1, ...] from rows [count + T, ...], float32 or bf16."""
        slots, last = self._last
        found = floats(rows[np.maximum(last, 0)])
        found[last < 0] = 0
        state[slots] = found
