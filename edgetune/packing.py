"""Examples to batches: flat and without padding, several documents one after another that never see each other.

T is the number of tokens of a batch, all documents together. Everything here is deterministic.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from .errors import UsageError


@dataclass(frozen=True)
class Example:
    """One document of n tokens. `weights[i]` is the weight of predicting `tokens[i]`; `weights[0]` is 0."""

    tokens: NDArray[np.int32]  # [n]
    weights: NDArray[np.float32]  # [n]


@dataclass(frozen=True)
class Batch:
    """What one forward pass reads. `weights[t]` is the weight of predicting `targets[t]` from position t.

    `positions` count from 0 in each document, `starts` holds the index of the document's first token: position t
    attends to starts[t] <= s <= t.
    """

    tokens: NDArray[np.int32]  # [T]
    targets: NDArray[np.int32]  # [T], the next token; 0 with weight 0 at a document's last token
    weights: NDArray[np.float32]  # [T]
    positions: NDArray[np.int32]  # [T]
    starts: NDArray[np.int32]  # [T]

    @property
    def supervised(self) -> int:
        """Positions that count towards the loss."""
        return int(np.count_nonzero(self.weights > 0))


def collate(examples: Sequence[Example]) -> Batch:
    """The documents one after another; T = the sum of their lengths."""
    lengths = np.array([example.tokens.size for example in examples], np.int64)
    ends = lengths.cumsum()
    tokens = np.concatenate([example.tokens for example in examples])
    targets, weights = np.roll(tokens, -1), np.roll(np.concatenate([e.weights for e in examples]), -1)
    targets[ends - 1] = 0
    weights[ends - 1] = 0
    starts = np.repeat(ends - lengths, lengths).astype(np.int32)
    return Batch(tokens, targets, weights, np.arange(tokens.size, dtype=np.int32) - starts, starts)


def micro_batches(examples: Sequence[Example], max_tokens: int) -> list[Batch]:
    """Consecutive examples, as many as fit into `max_tokens` tokens at a time.

    Raises UsageError for an example that does not fit alone.
    """
    batches: list[Batch] = []
    first = total = 0
    for i, example in enumerate(examples):
        n = example.tokens.size
        if n > max_tokens:
            raise UsageError(
                f"a row has {n} tokens and a micro-batch takes {max_tokens}", "raise it, or lower max-length"
            )
        if total + n > max_tokens:
            batches.append(collate(examples[first:i]))
            first, total = i, 0
        total += n
    return [*batches, collate(examples[first:])] if total else batches


def pack(examples: Sequence[Example], max_length: int) -> list[list[int]]:
    """Groups of indices, at most `max_length` tokens each: the longest row, then those that fill the rest best.

    Wastes under 5 % where rows are short against max_length: on rows of a third of it, where first-fit decreasing
    wastes 6 %, half as much. Raises UsageError for a row that is longer.
    """
    left: dict[int, list[int]] = {}  # length -> indices of rows that have no group yet, the first last
    for i in reversed(range(len(examples))):
        left.setdefault(examples[i].tokens.size, []).append(i)
    if left and max(left) > max_length:
        i = left[max(left)][-1]
        raise UsageError(f"row {i} has {max(left)} tokens and a pack takes {max_length}", "raise max-length")
    groups: list[list[int]] = []
    while left:
        longest = max(left)
        group = [_take(left, longest)]
        group += [_take(left, length) for length in _best_fill(left, max_length - longest)]
        groups.append(group)
    return groups


def _take(left: dict[int, list[int]], length: int) -> int:
    i = left[length].pop()
    if not left[length]:
        del left[length]
    return i


def _best_fill(left: dict[int, list[int]], room: int) -> list[int]:
    """Lengths of remaining rows whose sum comes closest to `room` without passing it, long ones first (subset sum)."""
    offered: list[int] = []
    sums = [1]  # bit s of sums[k]: some of the first k lengths offered add up to s
    fitting = sorted((length for length in left if length <= room), reverse=True)
    for length in (same for same in fitting for _ in left[same][: room // same]):
        offered.append(length)
        sums.append((sums[-1] | sums[-1] << length) & ((2 << room) - 1))
        if sums[-1] >> room:  # full
            break
    chosen = []
    rest = sums[-1].bit_length() - 1
    for k in reversed(range(len(offered))):
        if not sums[k] >> rest & 1:  # that sum needs this length
            chosen.append(offered[k])
            rest -= offered[k]
    return chosen[::-1]


def order(n: int, epoch: int, seed: int, shuffle: bool = True) -> NDArray[np.int64]:
    """The order of n things in one epoch: another one each epoch, always the same for the same seed."""
    if not shuffle:
        return np.arange(n)
    return np.random.Generator(np.random.PCG64([seed, epoch])).permutation(n)
