"""Several tokens a position, by passes of the head over the vocabulary that see each block of logits once.

Forward, log p of the tokens is read from the blocks, so that it is of the same products as the sum over all. Backward,
where L depends on log p of the target t and of k choices, with a = -dL by each, dL/dz = A p - a_t e_t - sum_i a_i e_i
and A = a_t + sum_i a_i: the pass gives A (p - e_t), to which sum_i a_i (e_t - e_i) is added by a few rows of the head.
The likeliest tokens are found in the blocks too. n: positions, k: choices, D: the head's width, B: entries of a block.
Where logits are capped, each row of the head comes with the slope of its cap.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable

import numpy as np
from numpy.typing import NDArray

from ..backends.base import SAMPLE_STATE, Backend, floats
from ..formats.gguf import Tensor

Floats = NDArray[np.float32]
See = Callable[[int, "Floats"], None]
Tokens = NDArray[np.int32]
POSITIONS = 8  # whose rows of the head are in memory at a time


class VocabularyPass:
    """A pass over the vocabulary. lse [n]: log sum exp of all logits, after the last block."""

    def __init__(self, ops: Backend, head: Tensor, h: np.ndarray, logits: Floats, precision: str, cap: float) -> None:
        """h [n, D]: the head's input; logits [n, B]: work space; cap: of logits, as for the ops."""
        n = len(h)
        self.ops = ops
        self.head = head
        self.h = h
        self.logits = logits
        self.precision = precision
        self.cap = cap
        self.lse = ops.empty((n,))
        self._state = ops.empty((n, SAMPLE_STATE))
        self._top = ops.empty((n, 1))
        self._limit = ops.place(np.full(n, np.inf, np.float32))

    def read(self, see: See, parts: Iterable[tuple[int, int]]) -> None:
        """Reads parts of the vocabulary in order. see: called with a block's first entry and logits [n, entries]."""
        for begin, end in parts:
            for first in range(begin, end, self.logits.shape[1]):
                last = min(first + self.logits.shape[1], end)
                self.ops.head_top(self._top, self.lse, self.logits, self._state, self.h, self.head.data,
                                  self.head.format, self._limit, (first, last), self.precision, self.cap)
                self.ops.synchronize()
                see(first, self.logits.reshape(-1)[:(last - first) * len(self.h)].reshape(-1, last - first))


class Choices:
    """Targets [n] and choices [n, k], by one head."""

    def __init__(self, ops: Backend, head: Tensor, targets: Tokens, choices: Tokens) -> None:
        self.ops = ops
        self.head = head
        self.tokens = np.concatenate([targets[:, None], choices], axis=1)
        self.z = np.empty(self.tokens.shape, np.float32)

    def see(self, first: int, logits: Floats) -> None:
        """Takes the logits of tokens that are in a block."""
        rows, columns = np.nonzero((self.tokens >= first) & (self.tokens < first + logits.shape[1]))
        self.z[rows, columns] = logits[rows, self.tokens[rows, columns] - first]

    def backward(self, dh: Floats, a: Floats, h: np.ndarray, cap: float) -> None:
        """Completes dh [n, D], the gradient of the pass over h with a summed over [n, 1 + k]. cap: of logits."""
        width = dh.shape[1]
        for begin in range(0, len(self.tokens), POSITIONS):
            part = slice(begin, begin + POSITIONS)
            tokens = self.ops.place(np.ascontiguousarray(self.tokens[part].reshape(-1)))
            rows = self.ops.empty((tokens.size, width))
            self.ops.embed(rows, tokens, self.head.data, self.head.format, 1.0)
            self.ops.synchronize()
            factors = -a[part]
            factors[:, 0] = a[part, 1:].sum(1)
            rows = rows.reshape(-1, self.tokens.shape[1], width)
            if cap:
                z = np.einsum("nd,nkd->nk", floats(h[part]), rows)
                factors *= 1 - np.tanh(z / np.float32(cap))**2
            dh[part] += np.einsum("nk,nkd->nd", factors, rows)


class Tempered:
    """log sum exp [n] of logits / temperature."""

    def __init__(self, n: int, temperature: float) -> None:
        self.temperature = np.float32(temperature)
        self.lse = np.full(n, -np.inf, np.float64)

    def see(self, _first: int, logits: Floats) -> None:
        """Adds those of a block; a row at a time, so that no other block is in memory."""
        for row, z in enumerate(logits):
            divided = z / self.temperature
            highest = divided.max()
            found = highest + np.log(np.exp(divided - highest).sum(dtype=np.float64))
            self.lse[row] = np.logaddexp(self.lse[row], found)


def both(one: See, other: See) -> See:
    def see(first: int, logits: Floats) -> None:
        one(first, logits)
        other(first, logits)

    return see


class Likeliest:
    """The k likeliest tokens of n positions; of equal ones the first."""

    def __init__(self, n: int, k: int) -> None:
        self.values = np.full((n, k), -np.inf, np.float32)
        self.tokens = np.zeros((n, k), np.int32)

    def see(self, first: int, logits: Floats) -> None:
        """Takes those tokens of a block that are among the likeliest so far."""
        for row in np.flatnonzero(logits.max(1) > self.values[:, -1]):
            self._merge(int(row), logits[row], first)

    def _merge(self, row: int, logits: Floats, first: int) -> None:
        k = self.values.shape[1]
        best = np.argpartition(-logits, k - 1)[:k] if logits.size > k else np.arange(logits.size)
        values = np.concatenate([self.values[row], logits[best]])
        tokens = np.concatenate([self.tokens[row], (first + best).astype(np.int32)])
        order = np.lexsort((tokens, -values))[:k]
        self.values[row] = values[order]
        self.tokens[row] = tokens[order]
