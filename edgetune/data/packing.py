"""Examples to batches: flat and without padding, a forest of documents, of which each sees itself alone.

What documents begin with alike is computed once (forest.py). T is the number of tokens of a batch that are computed, S
the number of supervised positions of all examples. Everything here is deterministic.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..errors import UsageError
from .forest import by_branches, deepest, grow

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
    """The input of a forward pass: a forest of tokens (forest.py), and what is predicted from them.

    Entry i of S predicts `targets[i]`, with weight `supervised_weights[i]`, from the token at `supervised[i]`. They are
    in the order of the examples, and ascend within each. A token that several examples share may predict several times.
    """

    tokens: NDArray[np.int32]  # [T]
    positions: NDArray[np.int32]  # [T], in the documents
    ends: NDArray[np.int32]  # [T]: token k is seen by tokens k to ends[k] - 1
    supervised: NDArray[np.int64]  # [S]
    targets: NDArray[np.int32]  # [S]
    supervised_weights: NDArray[np.float32]  # [S], not 0
    examples: tuple[Example, ...]  # the documents
    reference: NDArray[np.float32] | None = None  # [S], log p by the base without an adapter, if the objective needs it

    @property
    def row_tokens(self) -> int:
        """The tokens of all examples, however many of them are shared."""
        return sum(example.tokens.size for example in self.examples)

    def parts(self) -> Iterator[tuple[Example, slice]]:
        """Each example with its part of [S]."""
        begin = 0
        for example in self.examples:
            end = begin + example.supervised
            yield example, slice(begin, end)
            begin = end

    @cached_property
    def turns(self) -> tuple[NDArray[np.int64], ...]:
        """The indices of [S], divided so that none has a token twice: all of them, where no token predicts twice."""
        order = np.argsort(self.supervised, kind="stable")
        sorted_places = self.supervised[order]
        firsts = np.searchsorted(sorted_places, sorted_places)
        turn = np.empty(order.size, np.int64)
        turn[order] = np.arange(order.size) - firsts
        return tuple(np.flatnonzero(turn == number) for number in range(int(turn.max(initial=-1)) + 1))


def collate(examples: Sequence[Example], share: bool = True) -> Batch:
    """The forest of the documents. share False: one after another, T is the sum of their lengths."""
    found = grow([example.tokens for example in examples], share)
    supervised = [np.flatnonzero(is_supervised(example.weights[1:])) for example in examples]

    def joined(parts: Iterable[NDArray[Any]]) -> NDArray[Any]:
        return np.concatenate([*parts])

    return Batch(found.tokens, found.positions, found.ends,
                 joined(place[at] for place, at in zip(found.places, supervised, strict=True)),
                 joined(example.tokens[at + 1] for example, at in zip(examples, supervised, strict=True)),
                 joined(example.weights[at + 1] for example, at in zip(examples, supervised, strict=True)),
                 tuple(examples))


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


def micro_batches(examples: Sequence[Example], max_tokens: int, share: bool = True) -> list[Batch]:
    """As many examples as fit at a time, what begins alike together; a group is never parted.

    `max_tokens` limits the tokens that are computed, and the supervised positions. Where nothing is shared, examples
    stay in their order. Raises UsageError for an example or a group that does not fit alone.
    """
    groups = [[examples[i] for i in indices] for indices in grouped_indices(examples)]
    if share:
        groups = [groups[i] for i in by_branches([group[0].tokens for group in groups])]
    batches: list[Batch] = []
    members: list[Example] = []
    size = np.zeros(2, np.int64)
    for group in groups:
        alone = _added([], group, share)
        if alone.max() > max_tokens:
            what = "a row has" if len(group) == 1 else f"{len(group)} rows of one group have"
            raise UsageError(f"{what} {alone.max()} tokens and a micro-batch takes {max_tokens}",
                             "raise it, or lower max-length")
        size += _added(members, group, share)
        if size.max() > max_tokens:
            batches.append(collate(members, share))
            members = []
            size = alone
        members += group
    return [*batches, collate(members, share)] if members else batches


def _added(members: Sequence[Example], group: Sequence[Example], share: bool) -> NDArray[np.int64]:
    """(tokens to compute, supervised positions) that a group adds to a forest of the members."""
    tokens = 0
    before = [member.tokens for member in members]
    for example in group:
        tokens += example.tokens.size - (deepest(example.tokens, before) if share else 0)
        before.append(example.tokens)
    return np.array([tokens, sum(example.supervised for example in group)])


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
