"""Micro-batches of a batch's examples, and trees that are too large for one: a prefix, and branches after it.

What examples begin with alike is computed once as long as they fit into one micro-batch. Where they do not, each
micro-batch computes it again, or, where a plan has room for its keys and values, it is computed apart: first the
prefix, then the branches in micro-batches, which see its keys and values, then the prefix again, with the gradients
that all branches have left there.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ..errors import UsageError
from .forest import by_branches, deepest, shared
from .lengths import FORWARD, PASSES
from .packing import Batch, Example, collate, grouped_indices, is_supervised

Group = list[Example]


@dataclass(frozen=True)
class TreePart:
    """A part of a tree, and which entries of the whole [S] it predicts."""

    batch: Batch
    entries: NDArray[np.int64]


@dataclass(frozen=True)
class Tree:
    """Examples that begin alike and are computed in parts. whole: what an objective sees of them. prefix: None where
    the rows of a group are too many, and begin with nothing alike. parted: whether a group is in several branches.
    """

    whole: Batch
    prefix: TreePart | None
    branches: tuple[TreePart, ...]
    parted: bool

    @property
    def parts(self) -> tuple[TreePart, ...]:
        return (self.prefix, *self.branches) if self.prefix else self.branches

    @property
    def is_divisible(self) -> bool:
        """Whether an objective may see each branch by itself: all that it needs of an example is in one."""
        return not self.parted and (self.prefix is None or not self.prefix.entries.size)

    @property
    def computed(self) -> int:
        """Tokens, as `Batch.computed`."""
        return sum(part.batch.computed for part in self.parts)

    @property
    def row_tokens(self) -> int:
        return self.whole.row_tokens

    @property
    def examples(self) -> tuple[Example, ...]:
        return self.whole.examples


def micro_batches(examples: Sequence[Example], max_tokens: int, share: bool = True,
                  prefix: int = 0) -> list[Batch | Tree]:
    """Takes as many examples as fit, what begins alike together; a group is in one micro-batch, or in one tree.

    `max_tokens` limits the tokens that are computed at a time, and the supervised positions; `prefix` the tokens of a
    tree's prefix, 0: no tree is made. Where nothing is shared, examples stay in their order. Raises UsageError for an
    example that does not fit alone, without trees also for a group.
    """
    groups = [[examples[i] for i in indices] for indices in grouped_indices(examples)]
    if share:
        groups = [groups[i] for i in by_branches([group[0].tokens for group in groups])]
    bundles = [*_fill(groups, max_tokens, share, parts_groups=prefix > 0)]
    return [*_batches(bundles, max_tokens, share, prefix)]


def _batches(bundles: Sequence[Sequence[Group]], max_tokens: int, share: bool, prefix: int) -> Iterator[Batch | Tree]:
    """A batch of each bundle; a tree of consecutive ones where that saves tokens, or a group does not fit."""
    begin = 0
    while begin < len(bundles):
        alike = _alike(bundles[begin:]) if prefix else []
        saved = [min(n - 1, prefix) * (others - FORWARD) - PASSES for others, n in enumerate(alike)]
        best = max(range(len(saved)), key=saved.__getitem__, default=0)
        end = begin + 1 + (best if saved and saved[best] > 0 else 0)
        groups = [group for bundle in bundles[begin:end] for group in bundle]
        rows = [example for group in groups for example in group]
        if end > begin + 1 or (prefix and _added([], rows, share).max() > max_tokens):
            yield _tree(groups, max_tokens, min(alike[end - begin - 1] - 1, prefix))
        else:
            yield collate(rows, share)
        begin = end


def _alike(bundles: Sequence[Sequence[Group]]) -> list[int]:
    """The number of tokens that the rows of the first 1, 2, ... bundles begin with alike."""
    first = bundles[0][0][0].tokens
    found: list[int] = []
    n = first.size
    for bundle in bundles:
        n = min([n, *(shared(first[:n], example.tokens) for group in bundle for example in group)])
        found.append(n)
    return found


def _tree(groups: Sequence[Group], max_tokens: int, prefix: int) -> Tree:
    """Divides rows with at least one token more than the prefix alike: the token after it is each branch's first,
    so that what a branch predicts follows its own tokens.
    """
    rows = [example for group in groups for example in group]
    n = _predictable(rows, max(prefix, 0), max_tokens)
    alone = [[group] if _added([], group, True, n).max() <= max_tokens else [[row] for row in group]
             for group in groups]
    bundles = _fill([part for parts in alone for part in parts], max_tokens, True, begin=n)
    branches = [collate([example for group in bundle for example in group], begin=n) for bundle in bundles]
    ends = np.cumsum([row.supervised for row in rows])
    entries = [*zip(np.split(np.arange(ends[-1]), ends[:-1]), (row.supervised_before(n) for row in rows), strict=True)]
    rests = iter([of_row[count:] for of_row, count in entries])
    parts = tuple(TreePart(branch, np.concatenate([next(rests) for _ in branch.examples])) for branch in branches)
    first = TreePart(collate(rows, end=n), np.concatenate([of_row[:count] for of_row, count in entries])) if n else None
    return Tree(collate(rows), first, parts, any(len(group) > 1 for group in alone))


def _predictable(rows: Sequence[Example], prefix: int, max_tokens: int) -> int:
    """The prefix, or as much of it as predicts at most max_tokens positions of all rows."""
    counts = np.zeros(prefix + 1, np.int64)
    for row in rows:
        counts[1:] += np.cumsum(is_supervised(row.weights[row.ahead:prefix + row.ahead]))
    return int(np.flatnonzero(counts <= max_tokens)[-1])


def _fill(groups: Sequence[Group], max_tokens: int, share: bool, begin: int = 0,
          parts_groups: bool = False) -> Iterator[list[Group]]:
    """Takes the groups that fit; rows' first `begin` tokens are known. parts_groups: one too large is alone."""
    bundle: list[Group] = []
    size = np.zeros(2, np.int64)
    for group in groups:
        alone = _added([], group, share, begin)
        if alone.max() > max_tokens and not (parts_groups and len(group) > 1):
            what = "a row has" if len(group) == 1 else f"{len(group)} rows of one group have"
            raise UsageError(f"{what} {alone.max()} tokens and a micro-batch takes {max_tokens}",
                             "raise it, or lower max-length")
        size += _added([example for member in bundle for example in member], group, share, begin)
        if bundle and size.max() > max_tokens:
            yield bundle
            bundle = []
            size = alone
        bundle.append(group)
    if bundle:
        yield bundle


def _added(members: Sequence[Example], group: Sequence[Example], share: bool, begin: int = 0) -> NDArray[np.int64]:
    """(tokens to compute, supervised positions) that a group adds to a forest of the members, from `begin` on."""
    tokens = 0
    before = [member.tokens for member in members]
    for example in group:
        tokens += example.tokens.size - max(deepest(example.tokens, before) if share else 0, begin)
        before.append(example.tokens)
    return np.array([tokens, sum(example.supervised - example.supervised_before(begin) for example in group)])
