"""Documents as a forest of tokens: what several begin with is there once.

The tokens of a forest are in depth-first order: a token is followed by its subtree, all that continues it. Token j is
seen by the tokens of its subtree, j to ends[j] - 1. Documents that share nothing lie one after another, in their order.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Tokens = NDArray[np.int32]


@dataclass(frozen=True)
class Forest:
    """T tokens. positions: in every document that has them, from 0. places: each document's tokens."""

    tokens: Tokens  # [T]
    positions: NDArray[np.int32]  # [T]
    ends: NDArray[np.int32]  # [T]
    places: tuple[NDArray[np.int64], ...]  # each [n]


def grow(documents: Sequence[Tokens], share: bool = True) -> Forest:
    """The forest of documents of at least one token. share False: nothing is shared."""
    size = sum(document.size for document in documents)
    tokens = np.empty(size, np.int32)
    positions = np.empty(size, np.int32)
    ends = np.empty(size, np.int32)
    places = [np.empty(document.size, np.int64) for document in documents]
    count = 0
    open_segments: list[tuple[slice, int]] = []  # with how much is still to do when the segment's subtree is complete
    to_do = [*reversed(_branches(documents, range(len(documents)), 0, share))]
    while to_do or open_segments:
        if open_segments and len(to_do) == open_segments[-1][1]:
            ends[open_segments.pop()[0]] = count
            continue
        members, depth = to_do.pop()
        first = documents[members[0]]
        n = min((shared(first, documents[member], depth) for member in members[1:]), default=first.size) - depth
        segment = slice(count, count + n)
        tokens[segment] = documents[members[0]][depth:depth + n]
        positions[segment] = np.arange(depth, depth + n)
        for member in members:
            places[member][depth:depth + n] = np.arange(count, count + n)
        count += n
        open_segments.append((segment, len(to_do)))
        to_do += reversed(_branches(documents, members, depth + n, share))
    return Forest(tokens[:count], positions[:count], ends[:count], tuple(places))


def _branches(documents: Sequence[Tokens], members: Sequence[int], depth: int,
              share: bool) -> list[tuple[list[int], int]]:
    """Groups those of more than `depth` tokens by their next token, with the depth; each alone unless they share."""
    groups: dict[tuple[int, int], list[int]] = {}
    for member in members:
        if documents[member].size > depth:
            groups.setdefault((int(documents[member][depth]), 0 if share else member), []).append(member)
    return [(group, depth) for group in groups.values()]


def shared(a: Tokens, b: Tokens, begin: int = 0) -> int:
    """The number of first tokens that are the same, if the first `begin` are."""
    end = min(a.size, b.size)
    differ = a[begin:end] != b[begin:end]
    return begin + int(differ.argmax()) if differ.any() else end


def by_branches(documents: Sequence[Tokens]) -> list[int]:
    """The documents in the order of the forest's leaves: what begins alike stands together, and else is in order."""
    places = grow(documents).places
    return sorted(range(len(documents)), key=lambda i: (int(places[i][-1]), i))


def deepest(document: Tokens, others: Iterable[Tokens]) -> int:
    """The number of tokens of a document that a forest of others has already."""
    return max((shared(document, other) for other in others), default=0)
