"""Decides whether B is better than A, by their answers to the same rows. Everything that accepts or refuses a model
calls `decide`: all gates, the update of a house, the contest.

Right answers decide. How likely the right answer is decides nothing in favour of B. It can only refuse B, and only if B
does not answer more rows right. Four rules keep the error below ALPHA, and all four are needed:

- the population says how the rows were chosen. If they were chosen by what A answered, as corrections are, A can only
  lose on them, and nothing is promised about other questions, see `Population`;
- a row counts by its sign only. If B is no better than A on the population, then B wins a row on which they differ
  with a probability of at most 1/2. The exact sign test then finds p <= a with a probability of at most a;
- the k-th test since the last publication may spend ALPHA / (k (k + 1)), see `alpha_of_test`;
- rows that were used to choose B do not decide about it, see `Split`.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cache
from hashlib import sha256
from typing import Any, ClassVar

ALPHA = 0.125  # the level of every decision: four wins of four rows suffice in the first test of a sequence
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

    The sign test is one given the number of rows on which the two differ. If these are so few that not even winning
    all of them would suffice, it cannot publish, and is not counted.
    """
    k = tests_before + 1
    return alpha / (k * (k + 1))


# ---- the decision ---------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Population:
    """Says how the rows that decide were chosen. Every caller of `decide` names one of the three kinds below; rows that
    were chosen in another way are of none of them, so that nothing can be decided by them.

    tests_before: the number of tests since the last publication. promises: what a published B is, in a sentence.
    """

    tests_before: int = 0
    promises: ClassVar[str]

    def __post_init__(self) -> None:
        if type(self) is Population:
            raise TypeError("a population is Traffic, HeldOut or Given")

    @property
    def level(self) -> float:
        """Returns the greatest p at which B counts as better."""
        return alpha_of_test(ALPHA, self.tests_before)


class Traffic(Population):
    """A uniform sample of the questions that people asked. It was drawn when they asked, before anybody rated an
    answer. An answer that nobody rated counts as right.
    """

    promises = "better on the questions that people ask"


class HeldOut(Population):
    """A random part of a data set. Nothing learned it, and nothing was chosen by it."""

    promises = "better on questions like those of the data set"


class Given(Population):
    """Rows that people sent, such as corrections. A may have been asked first, so it may be wrong on them by choice."""

    promises = "better on questions like those that were corrected; nothing is known about others"


Value = tuple[float, float]  # of an answer: how right it is, and of two that are equally right the likelier is greater


@dataclass(frozen=True)
class Decision:
    """The decision on B. right: rows that one of them answers better than the other. all: the same, where equally right
    answers count by their likelihood. level: the greatest p at which B is better.
    """

    right: Paired
    all: Paired
    level: float

    @property
    def is_better(self) -> bool:
        """Returns whether B answers more rows right, not by chance."""
        return self.right.p_better <= self.level

    @property
    def is_worse(self) -> bool:
        """Returns whether B is worse, not by chance: by right answers, or by likelihood if it has no more of those."""
        return self.worse.p_worse <= ALPHA

    @property
    def worse(self) -> Paired:
        """Returns the counts that say more clearly that B is worse."""
        if self.right.wins > self.right.losses:
            return self.right
        return min(self.right, self.all, key=lambda counts: counts.p_worse)


def decide(old: Sequence[Value], new: Sequence[Value], population: Population) -> Decision:
    """Compares the answers of A (`old`) and B (`new`) to the same rows of a population.

    Raises ValueError for unequal numbers of values, and TypeError if it is not said how the rows were chosen.
    """
    if not isinstance(population, Population):
        raise TypeError("it is not said how the rows were chosen")
    right = Paired.of([value for value, _ in old], [value for value, _ in new])
    return Decision(right, Paired.of(old, new), population.level)


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
