"""The nearest of known vectors by cosine, and from which likeness on a question counts as like them.

Two limits are measured, since two things can be known. Of questions that were learned, only like ones are known:
`limit_of_learned` lets 98 % of such questions pass. Of repeats, each later answer says whether one was right:
`limit_of_repeats` lets few wrong ones pass.
Letters: n known vectors, m questions, D width of a vector, all of length 1.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float32]
UNLIKE = 0.02  # share of like questions, the least alike, by which the limit is set
LEAST = 0.6  # likeness of a repeat, before answers raise it
WRONG = 0.1  # share of wrong repeats at most, as if SURE right ones had been seen
SURE = 10
ROOM = 4  # vectors for which there is room at first; it doubles


class Neighbours:
    """Known vectors [n, D], numbered from 0. base: the cosine of unrelated ones, which counts as a likeness of 0; by it
    likeness means the same for each encoder. For one thread at a time while vectors are added or removed.
    """

    def __init__(self, vectors: Floats | None = None, base: float = 0.0) -> None:
        self.base = base
        self._room: Floats = np.empty((0, 0), np.float32) if vectors is None else vectors  # the first n are used
        self._count = len(self._room)

    def __len__(self) -> int:
        return self._count

    @property
    def vectors(self) -> Floats:
        """[n, D]"""
        return self._room[: self._count]

    def add(self, vector: Floats) -> None:
        """Adds a vector [D] as the last one."""
        if self._count == len(self._room):
            more = np.empty((self._count or ROOM, len(vector)), np.float32)
            self._room = np.concatenate([self._room.reshape(-1, len(vector)), more])
        self._room[self._count] = vector
        self._count += 1

    def remove(self, number: int) -> None:
        """Removes a vector; those after it move up."""
        self._room[number : self._count - 1] = self._room[number + 1 : self._count]
        self._count -= 1

    def likeness(self, questions: Floats) -> Floats:
        """The likeness [m, n] of questions [m, D] to each known vector; of one question [D]: [n]."""
        found: Floats = (questions @ self.vectors.T - self.base) / (1 - self.base)
        return found

    def nearest(self, question: Floats, count: int | None = None) -> tuple[NDArray[np.intp], Floats]:
        """The numbers of the `count` vectors, or all, that are most like a question [D], the most like first, and their
        likeness; of equally like ones the earlier first.
        """
        likeness = self.likeness(question)
        order = np.argsort(-likeness, kind="stable")[:count]
        return order, likeness[order]


def mean_of_greatest(likeness: Floats, count: int) -> Floats:
    """The likeness [m] to the `count` nearest vectors together, by that to each [m, n]."""
    found: Floats = np.sort(likeness, axis=1)[:, -count:].mean(1)
    return found


def limit_of_learned(likeness: Floats) -> float:
    """The least likeness of a question that is like the learned ones, by the likeness [m] of such questions, each of
    which is not among the vectors that it was compared with.
    """
    return float(np.sort(likeness)[int(len(likeness) * UNLIKE)])


def limit_of_repeats(tests: Sequence[tuple[float, bool]]) -> float:
    """The least limit, from LEAST on, at which few enough of the tests (likeness, whether it is right) are wrong."""
    limit = LEAST
    ordered = sorted(tests)
    wrong = sum(not is_right for _, is_right in ordered)
    for i, (likeness, is_right) in enumerate(ordered):
        if wrong <= WRONG * (len(ordered) - i + SURE):
            return limit
        wrong -= not is_right
        limit = float(np.nextafter(np.float32(likeness), np.float32(2)))
    return limit
