"""Examples to batches: flat and without padding, a forest of documents, of which each sees itself alone.

What documents begin with alike is computed once (forest.py). T is the number of tokens of a batch that are computed, S
the number of supervised positions of all examples. Everything here is deterministic.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from hashlib import sha256
from itertools import pairwise
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..errors import UsageError
from .forest import grow

# A forest is divided into pieces, by which what has a state goes through it. States are kept after a few tokens only,
# PIECE on a path from one to the next: at most T / PIECE of them, whatever the branches. A state between two kept ones
# is made again from the one before. A piece is a run of consecutive tokens, each continued by the next. It begins after
# a kept state, or with a document, or where another branch begins. Such a branch first replays the tokens of its path
# since the last kept state: they change the state, give no output, and what they are told of gradients adds to what is
# known of them.
PIECE = 64  # tokens at most of a piece and of what it replays, together
COLUMNS = 5


def pieces_of(before: NDArray[np.int32], longest: int = PIECE) -> NDArray[np.int32]:
    """(begin, end, replayed, source, kept) of each piece in the order of the tokens, int32 [P, 5].

    before: the token before each in its document, [T]; -1 for a first one. replayed: the number of tokens before
    `begin` in its document that are replayed. source: the kept state from which it starts, -1: of zeros. kept: the
    number under which the state at its end is kept, -1: it is not.
    """
    parents = before.tolist()
    kept = _kept(parents, longest)
    path = [0] * len(parents)  # tokens since the last kept state, this one among them
    sources = [-1] * len(parents)
    for token, parent in enumerate(parents):
        follows = parent >= 0 and kept[parent] < 0
        path[token] = path[parent] + 1 if follows else 1
        sources[token] = sources[parent] if follows else kept[parent] if parent >= 0 else -1
    begins = [t for t, parent in enumerate(parents) if parent < 0 or parent != t - 1 or kept[parent] >= 0]
    rows = [(begin, end, path[begin] - 1, sources[begin], kept[end - 1])
            for begin, end in pairwise([*begins, len(parents)])]
    return np.array(rows, np.int32).reshape(-1, COLUMNS)


def _kept(parents: list[int], longest: int) -> list[int]:
    """The number of the state that is kept after each token, -1: none is. From the leaves on: a state is kept where
    `longest` tokens follow on some path, so that each kept one has as many tokens for itself.
    """
    ahead = [0] * len(parents)  # tokens after this one up to the next kept state or a leaf, on the longest path
    kept = [-1] * len(parents)
    count = 0
    for token in range(len(parents) - 1, -1, -1):
        if ahead[token] == longest:
            kept[token] = count
            count += 1
        if (parent := parents[token]) >= 0:
            ahead[parent] = max(ahead[parent], 1 if kept[token] >= 0 else ahead[token] + 1)
    return kept


def kept_states(tokens: int) -> int:
    """The states that are kept of a batch of `tokens` tokens at most."""
    return tokens // PIECE


_NOTHING = np.empty(0, np.float32)
_NO_LABELS = np.empty(0, np.int32)


def is_supervised(weights: NDArray[np.float32]) -> NDArray[np.bool_]:
    """Which positions are supervised: those whose weight is not 0, whatever its sign. Nothing else decides this."""
    return np.not_equal(weights, 0)


@dataclass(frozen=True)
class Example:
    """One document of n tokens. `weights[i]` is the weight of predicting `tokens[i]`; `weights[0]` is 0.

    Consecutive examples of one `group` (not 0) belong together, such as a better and a worse answer: they are in the
    same micro-batch. `reward` is what an objective knows of the document as a whole, such as how good its answer is,
    `held` how much more than others it is held to the reference model; `item` is its row as JSON, for an objective that
    grades the model's answers. `logp` is the log-probability that its supervised tokens had when the model drew them,
    `values` what was expected there, where an objective needs it. `prompts` are other prompts for the same answer,
    after which the reference model reads it too, or a prompt that the model is given later: the tokens of
    each, in an order that its row's parser and its objective know; empty for one that the row lacks. With `labels` a
    head says the class of the tokens themselves, and `weights[i]` is the weight of `labels[i]`. `document` are labels
    of the document as a whole, each predicted at its first token with its share as weight, or 1.
    """

    tokens: NDArray[np.int32]  # [n]
    weights: NDArray[np.float32]  # [n], may be negative
    group: int = 0
    reward: float = 0.0
    held: float = 0.0
    item: str = ""
    logp: NDArray[np.float32] = field(default_factory=lambda: _NOTHING)  # [supervised], or empty
    values: NDArray[np.float32] = field(default_factory=lambda: _NOTHING)  # likewise
    prompts: tuple[NDArray[np.int32], ...] = ()
    labels: NDArray[np.int32] = field(default_factory=lambda: _NO_LABELS)  # [n], or empty
    document: NDArray[np.int32] = field(default_factory=lambda: _NO_LABELS)  # [any number]
    shares: NDArray[np.float32] = field(default_factory=lambda: _NOTHING)  # as `document`, not 0, or empty

    @property
    def ahead(self) -> int:
        """The distance from a token to its target: 1, the token that follows; 0, the label of the token itself."""
        return 0 if self.labels.size or self.document.size else 1

    @property
    def supervised(self) -> int:
        """The number of supervised positions; the first token is predicted from nothing and is none."""
        return self.supervised_before(self.tokens.size)

    def supervised_before(self, n: int) -> int:
        """The number of targets that are predicted at the first n tokens."""
        return int(is_supervised(self.weights[self.ahead:n + self.ahead]).sum()) + self.document.size

    @property
    def begin(self) -> int:
        """The place where the answer begins: the first supervised token; the number of tokens where there is none."""
        found = np.flatnonzero(is_supervised(self.weights))
        return int(found[0]) if found.size else self.weights.size

    @property
    def longest(self) -> int:
        """Tokens of the longest document that is read: its own, or its answer after another prompt."""
        own = self.begin
        return self.tokens.size + max((prompt.size - own for prompt in self.prompts if prompt.size > own), default=0)


@dataclass(frozen=True)
class Batch:
    """The input of a forward pass: a forest of tokens (forest.py), and what is predicted from them.

    Entry i of S predicts `targets[i]`, a token or a label, with weight `supervised_weights[i]`, at `supervised[i]`.
    They are in the order of the examples, and ascend within each. One that several share may predict several times.
    """

    tokens: NDArray[np.int32]  # [T]
    positions: NDArray[np.int32]  # [T], in the documents
    ends: NDArray[np.int32]  # [T]: token k is seen by tokens k to ends[k] - 1
    supervised: NDArray[np.int64]  # [S]
    targets: NDArray[np.int32]  # [S]
    supervised_weights: NDArray[np.float32]  # [S], not 0
    examples: tuple[Example, ...]  # the documents
    reference: NDArray[np.float32] | None = None  # [S], log p by the reference model, if the objective needs it
    values: NDArray[np.float32] | None = None  # [S], the rewards that are expected, if the objective needs it
    views: NDArray[np.float32] | None = None  # [V, S], log p by the reference after other prompts; nan: row has none
    choices: NDArray[np.int32] | None = None  # [S, k], tokens whose log p counts with the target's
    choices_reference: NDArray[np.float32] | None = None  # [S, k], log p of these by the reference
    behind: int = 0  # tokens of a prefix, computed before, that all of its tokens see
    is_prefix: bool = False  # whether it is the prefix of batches that follow (trees.py)

    @property
    def computed(self) -> int:
        """T, the tokens to compute."""
        return self.tokens.size

    @cached_property
    def before(self) -> NDArray[np.int32]:
        """The token before each one in its document, [T]; -1 for a first one."""
        found = np.full(self.tokens.size, -1, np.int32)
        path: list[int] = []  # tokens that the next one may see
        ends = self.ends.tolist()
        for token in range(len(ends)):
            while path and ends[path[-1]] <= token:
                path.pop()
            if path:
                found[token] = path[-1]
            path.append(token)
        return found

    @cached_property
    def pieces(self) -> NDArray[np.int32]:
        """What has a state goes through the tokens by these, [P, 5], in the order of T: see `pieces_of`."""
        return pieces_of(self.before)

    @cached_property
    def seen_ends(self) -> NDArray[np.int32]:
        """`ends` of the tokens of the prefix and these."""
        own = self.ends + np.int32(self.behind)
        return np.concatenate([np.full(self.behind, self.behind + self.tokens.size, np.int32), own])

    @cached_property
    def seen_positions(self) -> NDArray[np.int32]:
        """`positions` of the tokens of the prefix and these."""
        return np.concatenate([np.arange(self.behind, dtype=np.int32), self.positions])

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

    def after(self, n: int) -> Batch:
        """The same after n virtual tokens, -1 to -n, which all others see: its own, or those of its prefix."""
        if not n:
            return self
        moved = replace(self, positions=self.positions + np.int32(n))
        if self.behind:
            return replace(moved, behind=self.behind + n)
        own = np.arange(n, dtype=np.int32)
        ends = np.concatenate([np.full(n, n + self.tokens.size, np.int32), self.ends + np.int32(n)])
        return replace(moved, tokens=np.concatenate([-1 - own, self.tokens]),
                       positions=np.concatenate([own, moved.positions]), ends=ends, supervised=self.supervised + n)

    def filled(self, tokens: int) -> Batch:
        """The same with a T of `tokens`: those that are added see themselves alone, and nothing is predicted there."""
        n = tokens - self.tokens.size
        ends = np.arange(self.tokens.size + 1, tokens + 1, dtype=np.int32)
        return replace(self, tokens=np.pad(self.tokens, (0, n)), positions=np.pad(self.positions, (0, n)),
                       ends=np.concatenate([self.ends, ends]))

    @cached_property
    def turns(self) -> tuple[NDArray[np.int64], ...]:
        """The indices of [S], divided so that none has a token twice: all of them, where no token predicts twice."""
        order = np.argsort(self.supervised, kind="stable")
        sorted_places = self.supervised[order]
        firsts = np.searchsorted(sorted_places, sorted_places)
        turn = np.empty(order.size, np.int64)
        turn[order] = np.arange(order.size) - firsts
        return tuple(np.flatnonzero(turn == number) for number in range(int(turn.max(initial=-1)) + 1))


def collate(examples: Sequence[Example], share: bool = True, begin: int = 0, end: int | None = None) -> Batch:
    """The forest of the documents. share False: one after another, T is the sum of their lengths.

    begin: after a prefix of `begin` tokens, which all have. end: that prefix itself, of `end` tokens.
    """
    found = grow([example.tokens[begin:end] for example in examples], share)
    supervised = [np.flatnonzero(is_supervised(example.weights[begin + example.ahead:
                                                               None if end is None else end + example.ahead]))
                  for example in examples]
    said = [begin + at + example.ahead for example, at in zip(examples, supervised, strict=True)]
    supervised = [np.concatenate([np.zeros(example.document.size, np.int64), at]) if example.document.size else at
                  for example, at in zip(examples, supervised, strict=True)]

    def joined(parts: Iterable[NDArray[Any]]) -> NDArray[Any]:
        return np.concatenate([*parts])

    return Batch(found.tokens, found.positions + np.int32(begin), found.ends,
                 joined(place[at] for place, at in zip(found.places, supervised, strict=True)),
                 joined(_targets(example, at) for example, at in zip(examples, said, strict=True)),
                 joined(_weights(example, at) for example, at in zip(examples, said, strict=True)),
                 tuple(examples), behind=begin, is_prefix=end is not None)


def _targets(example: Example, at: NDArray[np.int64]) -> NDArray[np.int32]:
    """The labels of the document, then what is predicted of the tokens `at`."""
    found = (example.labels if example.labels.size else example.tokens)[at]
    return np.concatenate([example.document, found]) if example.document.size else found


def _weights(example: Example, at: NDArray[np.int64]) -> NDArray[np.float32]:
    found = example.weights[at]
    if not example.document.size:
        return found
    of_document = example.shares if example.shares.size else np.ones(example.document.size, np.float32)
    return np.concatenate([of_document, found])


def example_key(example: Example) -> bytes:
    """16 bytes, equal for examples of the same tokens of which the same are supervised."""
    return sha256(example.tokens.tobytes() + is_supervised(example.weights).tobytes()).digest()[:16]


def grouped_indices(examples: Sequence[Example]) -> list[list[int]]:
    """The indices of the examples in their order, those of a group together, each other one alone."""
    groups: list[list[int]] = []
    for i, example in enumerate(examples):
        if i and example.group and example.group == examples[i - 1].group:
            groups[-1].append(i)
        else:
            groups.append([i])
    return groups


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
