"""Examples to batches: flat and without padding, several documents one after another that never see each other.

T is the number of tokens of a batch, all documents together. Everything here is deterministic.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from ..errors import UsageError

Lengths = Sequence[int | tuple[int, ...]]  # tokens of examples, those of a group together in a tuple


def is_supervised(weights: NDArray[np.float32]) -> NDArray[np.bool_]:
    """Which positions are supervised: those whose weight is not 0, whatever its sign. Nothing else decides this."""
    return np.not_equal(weights, 0)


@dataclass(frozen=True)
class Example:
    """One document of n tokens. `weights[i]` is the weight of predicting `tokens[i]`; `weights[0]` is 0.

    Consecutive examples of one `group` (not 0) belong together, such as a better and a worse answer: they are in the
    same micro-batch.
    """

    tokens: NDArray[np.int32]  # [n]
    weights: NDArray[np.float32]  # [n], may be negative
    group: int = 0

    @property
    def supervised(self) -> int:
        """The number of supervised tokens; the first is predicted from nothing and is none."""
        return int(is_supervised(self.weights[1:]).sum())


@dataclass(frozen=True)
class Batch:
    """The input of a forward pass. `weights[t]` is the weight of predicting `targets[t]` from position t.

    `positions` count from 0 in each document, `starts` holds the index of the document's first token: position t
    attends to starts[t] <= s <= t.
    """

    tokens: NDArray[np.int32]  # [T]
    targets: NDArray[np.int32]  # [T], the next token; 0 with weight 0 at a document's last token
    weights: NDArray[np.float32]  # [T]
    positions: NDArray[np.int32]  # [T]
    starts: NDArray[np.int32]  # [T]
    examples: tuple[Example, ...]  # the documents
    reference: NDArray[np.float32] | None = None  # [S], log p by the base without an adapter, if the objective needs it

    @cached_property
    def supervised(self) -> NDArray[np.int64]:
        """The supervised positions [S], ascending: log-probabilities and an objective's weights are of these."""
        return np.flatnonzero(is_supervised(self.weights))

    @cached_property
    def supervised_weights(self) -> NDArray[np.float32]:
        """The examples' weights at the supervised positions [S]."""
        return self.weights[self.supervised]

    def parts(self) -> Iterator[tuple[Example, slice]]:
        """Each example with its part of [S]."""
        begin = 0
        for example in self.examples:
            end = begin + example.supervised
            yield example, slice(begin, end)
            begin = end


def collate(examples: Sequence[Example]) -> Batch:
    """The documents one after another; T = the sum of their lengths."""
    lengths = np.array([example.tokens.size for example in examples], np.int64)
    ends = lengths.cumsum()
    tokens = np.concatenate([example.tokens for example in examples])
    targets = np.roll(tokens, -1)
    weights = np.roll(np.concatenate([example.weights for example in examples]), -1)
    targets[ends - 1] = 0
    weights[ends - 1] = 0
    starts = np.repeat(ends - lengths, lengths).astype(np.int32)
    positions = np.arange(tokens.size, dtype=np.int32) - starts
    return Batch(tokens, targets, weights, positions, starts, tuple(examples))


def grouped_indices(examples: Sequence[Example]) -> list[list[int]]:
    """The indices of the examples in their order, those of a group together, each other one alone."""
    groups: list[list[int]] = []
    for i, example in enumerate(examples):
        if i and example.group and example.group == examples[i - 1].group:
            groups[-1].append(i)
        else:
            groups.append([i])
    return groups


def lengths_of(examples: Sequence[Example]) -> list[int | tuple[int, ...]]:
    """The tokens of each example, those of a group together, as a plan takes them."""
    lengths: list[int | tuple[int, ...]] = []
    for indices in grouped_indices(examples):
        sizes = tuple(examples[i].tokens.size for i in indices)
        lengths.append(sizes[0] if len(sizes) == 1 else sizes)
    return lengths


def micro_batches(examples: Sequence[Example], max_tokens: int) -> list[Batch]:
    """Consecutive examples, as many as fit into `max_tokens` tokens at a time; a group is never parted.

    Raises UsageError for an example or a group that does not fit alone.
    """
    batches: list[Batch] = []
    members: list[Example] = []
    total = 0
    for indices in grouped_indices(examples):
        group = [examples[i] for i in indices]
        n = sum(example.tokens.size for example in group)
        if n > max_tokens:
            what = "a row has" if len(group) == 1 else f"{len(group)} rows of one group have"
            raise UsageError(f"{what} {n} tokens and a micro-batch takes {max_tokens}", "raise it, or lower max-length")
        if total + n > max_tokens:
            batches.append(collate(members))
            members = []
            total = 0
        members += group
        total += n
    return [*batches, collate(members)] if members else batches


def pack(examples: Sequence[Example], max_length: int) -> list[list[int]]:
    """Packs of indices, at most `max_length` tokens each: the longest row, then the rows that best fill what is left.

    Rows of a group are packed as one. Less than 5 % of a pack stays empty where rows are short: with rows of a third of
    max_length 3 %, where first-fit decreasing leaves 6 %. Raises UsageError for a row or a group that is longer.
    """
    items = grouped_indices(examples)
    sizes = [sum(examples[i].tokens.size for i in item) for item in items]
    left: dict[int, list[int]] = {}  # size -> items that have no pack yet, the first last
    for number in reversed(range(len(items))):
        left.setdefault(sizes[number], []).append(number)
    if left and max(left) > max_length:
        i = items[left[max(left)][-1]][0]
        raise UsageError(f"row {i} has {max(left)} tokens and a pack takes {max_length}", "raise max-length")
    packs: list[list[int]] = []
    while left:
        longest = max(left)
        members = [_take(left, longest)]
        members += [_take(left, size) for size in _best_fill(left, max_length - longest)]
        packs.append([i for number in members for i in items[number]])
    return packs


def _take(left: dict[int, list[int]], length: int) -> int:
    i = left[length].pop()
    if not left[length]:
        del left[length]
    return i


def _best_fill(left: dict[int, list[int]], space: int) -> list[int]:
    """Lengths of remaining rows whose sum is closest to `space` without exceeding it, long ones first (subset sum)."""
    offered: list[int] = []
    sums = [1]  # bit s of sums[k]: some of the first k lengths offered add up to s
    fitting = sorted((length for length in left if length <= space), reverse=True)
    for length in (same for same in fitting for _ in left[same][: space // same]):
        offered.append(length)
        sums.append((sums[-1] | sums[-1] << length) & ((2 << space) - 1))
        if sums[-1] >> space:  # full
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
