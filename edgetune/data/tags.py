"""The likeliest tags of a question's tokens that make whole values: of whole words, each begun by B.

Tags are those of slots.py: O, then B and I of each field. Letters: T tokens, W words, K tags.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from .slots import OUTSIDE, Span


def best_tags(logp: NDArray[np.float32], question: str, places: Sequence[Span]) -> list[int]:
    """The tags [T] of the likeliest sequence (Viterbi 1967). logp [T, K]: of each token's tags."""
    words = words_of(question, places)
    k = logp.shape[1]
    if not words:
        return [OUTSIDE] * len(places)
    first_inside = np.arange(k)
    first_inside[1::2] += 1  # the pieces of a word after its first have I where that has B
    scores = np.stack([logp[word[0]] + logp[word[1:]].astype(np.float64)[:, first_inside].sum(0) for word in words])
    path = _viterbi(scores)
    tags = [OUTSIDE] * len(places)
    for word, tag in zip(words, path, strict=True):
        for number, token in enumerate(word):
            tags[token] = int(first_inside[tag]) if number else tag
    return tags


def words_of(question: str, places: Sequence[Span]) -> list[list[int]]:
    """The tokens of each word: those between which no character is left out, all of letters and digits."""
    words: list[list[int]] = []
    last = -1
    for token, (begin, end) in enumerate(places):
        if begin == end:
            continue
        if begin == last and question[begin - 1].isalnum() and question[begin].isalnum():
            words[-1].append(token)
        else:
            words.append([token])
        last = end
    return words


def _viterbi(scores: NDArray[np.float64]) -> list[int]:
    """The tags [W] with the highest sum of scores [W, K], among those in which I follows B or I of its field."""
    k = scores.shape[1]
    may_follow = np.ones((k, k), bool)  # [tag before, tag]
    may_follow[:, 2::2] = False
    for inside in range(2, k, 2):
        may_follow[[inside - 1, inside], inside] = True
    barred = np.where(may_follow, 0.0, -np.inf)
    best = scores[0].copy()
    best[2::2] = -np.inf
    came = []
    for row in scores[1:]:
        reached = best[:, None] + barred
        came.append(reached.argmax(0))
        best = reached.max(0) + row
    path = [int(best.argmax())]
    for before in reversed(came):
        path.append(int(before[path[-1]]))
    return path[::-1]
