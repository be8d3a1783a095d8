"""A forest of tokens divided into pieces, by which what has a state goes through it (forest.py).

States are kept after a few tokens only, PIECE on a path from one to the next: at most T / PIECE of them, whatever the
branches. A state between two kept ones is made again from the one before.

A piece is a run of consecutive tokens, each continued by the next. It begins after a kept state, or with a document, or
where another branch begins. Such a branch first replays the tokens of its path since the last kept state: they change
the state, give no output, and what they are told of gradients adds to what is known of them.
"""

from __future__ import annotations

from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

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
