"""Tests whether B is better than A: pairs on the same rows, with a bound on the error of a sequence of tests.

Everything that accepts or refuses a model uses them: the gates of the daemon and the tutor, `compare`, a run's answers.
Three rules keep the error below alpha, and all three are needed:

- a row counts by its sign alone. If B is no better than A, B wins each row on which they differ with a probability of
  at most 1/2. The exact sign test then finds p <= a with a probability of at most a;
- the k-th test since the last publication may spend alpha / (k (k + 1)), see `alpha_of_test`;
- rows that were used to choose B do not decide about it, see `Split`.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cache
from hashlib import sha256
from typing import Any

LOSS_DIGITS = 3  # of nats a token: a smaller difference is rounding
Z = 1.959964  # standard deviations on either side that hold 95 % of a normal distribution


@dataclass(frozen=True)
class Paired:
    """The numbers of rows on which B is better than A, worse, and equal. All p are those of the exact sign test."""

    wins: int
    losses: int
    ties: int = 0

    @classmethod
    def of(cls, before: Iterable[Any], after: Iterable[Any]) -> Paired:
        """Counts rows by their values under A and under B, where the greater value is better. Values are numbers, or
        anything that Python orders, as tuples: (is right, reward). Raises ValueError for unequal numbers of values.
        """
        pairs = list(zip(before, after, strict=True))
        wins = sum(bool(new > old) for old, new in pairs)
        losses = sum(bool(new < old) for old, new in pairs)
        return cls(wins, losses, len(pairs) - wins - losses)

    def __add__(self, other: Paired) -> Paired:
        """Both together, of different rows."""
        return Paired(self.wins + other.wins, self.losses + other.losses, self.ties + other.ties)

    @property
    def rows(self) -> int:
        return self.wins + self.losses + self.ties

    @property
    def p_better(self) -> float:
        """The probability of at least as many wins, if B is no better than A."""
        return at_most(self.losses, self.wins + self.losses)

    @property
    def p_worse(self) -> float:
        """The probability of at least as many losses, if B is no worse than A."""
        return at_most(self.wins, self.wins + self.losses)

    @property
    def p_two_sided(self) -> float:
        """The probability of a difference as large in either direction, if the two are equal."""
        return min(1.0, 2 * min(self.p_better, self.p_worse))


def worth(value: float, loss: float) -> tuple[float, float]:
    """Orders two answers to one question: by their values (1 for a right one), and equal ones by how likely the right
    answer is to the adapter. loss: nats a token of the right answer.
    """
    return value, -round(loss, LOSS_DIGITS)


@cache
def at_most(count: int, n: int) -> float:
    """The probability of at most `count` heads of n coins."""
    return float(sum(math.comb(n, k) for k in range(count + 1)) / 2**n)


def alpha_of_test(alpha: float, tests_before: int) -> float:
    """The level of the next test, if there were `tests_before` since the last publication (or since the beginning).

    Guarantee: if no tested adapter is better than the active one, the probability that any of them is ever published
    is at most alpha. The k-th test has the level alpha / (k (k + 1)), and these levels sum to alpha. By the union bound
    the choice of questions, their repetition and the dependence between tests do not matter. So the probability that
    an adapter that is no better is published before a better one is also at most alpha. A publication begins a new
    sequence with the whole alpha (alpha investing, Foster and Stine 2008). Over a long time, at most alpha false
    publications are expected for each sequence that begins.
    """
    k = tests_before + 1
    return alpha / (k * (k + 1))


@dataclass(frozen=True)
class Split:
    """Held-out names in two parts. `selecting` rows choose a checkpoint, a round or a length, any number of times.
    `deciding` rows evaluate only the chosen one. Raises ValueError where a name is in both.
    """

    selecting: frozenset[str]
    deciding: frozenset[str]

    def __post_init__(self) -> None:
        if both := self.selecting & self.deciding:
            raise ValueError(f"{len(both)} rows were used to choose and must not decide, such as {min(both)}")

    @classmethod
    def of(cls, names: Iterable[str]) -> Split:
        """Divides into halves by the ranks of the names' digests; of an odd number one more decides.

        A name may change sides when others come: whoever resumes stores the halves, as a job of the daemon does.
        """
        ranked = sorted(set(names), key=lambda name: sha256(name.encode()).digest())
        half = len(ranked) // 2
        return cls(frozenset(ranked[:half]), frozenset(ranked[half:]))


def wilson(right: int, n: int) -> tuple[float, float]:
    """The 95 % interval of the share of which `right` of n is a sample (Wilson, 1927); n > 0."""
    share = right / n
    middle = share + Z**2 / (2 * n)
    half = Z * math.sqrt(share * (1 - share) / n + Z**2 / (4 * n**2))
    scale = 1 + Z**2 / n
    return max(0.0, (middle - half) / scale), min(1.0, (middle + half) / scale)
