"""When an answer of an encoder is sure: by the probabilities of its answers to questions that it did not learn.

An answer is sure for a share, such as 90 %, if it is probable enough: of the answers that are at least as probable, at
least this share is right, with a certainty of 95 % over the draw of the n held-out questions. That holds for each share
that is asked before the questions are drawn, if later ones are drawn as they were; it says nothing of other ones.

The r most probable of n answers are draws from all answers that are more probable than the next one. So the number of
wrong ones among them is binomial, and an exact test says whether the share is reached. Two ways to choose r divide the
5 %: all answers at once, and the most probable ones, then more, until a test fails. The tests of the second way need no
correction, since their order is fixed (Angelopoulos et al. 2021, Learn then Test). Equally probable answers belong
together, and for these the rule is tested by simulation (tests/serving/test_sureness.py).

A sure answer is also more probable than the least tenth: a less probable one is to a question unlike the learned ones.
Of JSON with values from the question the kind, its fields of few values, is sure or not by itself; likeness.py says
which questions are like the learned ones.
"""

from __future__ import annotations

import math
import sys
from bisect import bisect_left
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..adapters.base import Artifact
from ..errors import FormatError

ANSWERS = "sureness"  # among an adapter's facts
KINDS = "kinds"  # likewise; only where answers have values from the question
LEAST_ROWS = 20  # of fewer answers no share is known
UNLIKE = 0.1  # share of the answers, the least probable ones, of which none is sure
SHARES = (*(n / 100 for n in range(50, 100)), *(n / 1000 for n in range(991, 1000)))  # that can be reached
CERTAINTY = 0.95
ALL = 0.01  # part of the remaining 0.05: the level of the test of all answers at once,
IN_TURN = 0.04  # and of those of the most probable ones
HALVINGS = 40  # of the range in which a bound is
GROWTH = 1.25  # of the number of wrong answers from one of these to the next


@dataclass(frozen=True)
class Sureness:
    """rows: the number of answers. levels: (least probability, share that is right, share of the rows that was
    answered) of sure answers, by ascending shares that are right; () if none is reached.
    """

    rows: int
    levels: tuple[tuple[float, float, float], ...]

    @classmethod
    def of(cls, probabilities: Sequence[float] | np.ndarray, right: Sequence[bool] | np.ndarray,
           unlike: float = UNLIKE) -> Sureness | None:
        """Levels from answers [n] to questions that were not learned; None for fewer than LEAST_ROWS."""
        if len(probabilities) < LEAST_ROWS:
            return None
        ranked = _Ranked.of(probabilities, right, unlike)
        levels: list[tuple[float, float, float]] = []
        for share in SHARES:
            if not (r := ranked.sure(share)):
                continue
            level = (ranked.above(r), share, r / ranked.n)
            if levels and levels[-1][0] == level[0]:
                levels.pop()
            levels.append(level)
        return cls(ranked.n, tuple(levels))

    def threshold(self, share: float) -> float:
        """The least probability of a sure answer; infinite if not even the most probable ones reach this share."""
        return self._level(share)[0]

    def threshold_up_to(self, share: float) -> float:
        """The same for the highest share up to this one that is reached."""
        return self.threshold(min(share, self.surest))

    def answered(self, share: float) -> float:
        """The share of questions with a sure answer."""
        return self._level(share)[2]

    @property
    def surest(self) -> float:
        """The highest share that is reached; 0 if none is."""
        return self.levels[-1][1] if self.levels else 0.0

    def missing(self, share: float) -> str:
        """Says why no answer is sure for a share."""
        if self.rows < (least := needed(share)):
            return f"{self.rows} held-out rows, at least {least} needed for {share:.4g}"
        return f"of {self.rows} held-out rows, too many of the surest answers are wrong for {share:.4g}"

    def _level(self, share: float) -> tuple[float, float, float]:
        return next((level for level in self.levels if level[1] >= share), (math.inf, 1.0, 0.0))

    def to_json(self) -> dict[str, Any]:
        return {"rows": self.rows, "levels": self.levels, "certainty": CERTAINTY}

    @classmethod
    def of_json(cls, found: Mapping[str, Any]) -> Sureness:
        """The inverse of `to_json`. Raises KeyError, TypeError or ValueError for what it did not write."""
        rows = int(found["rows"])
        levels = tuple((float(p), float(right), float(answered)) for p, right, answered in found["levels"])
        if "certainty" in found:
            return cls(rows, levels)
        if not levels:
            raise ValueError("no levels")
        return cls(rows, _of_shares(rows, *levels[0]))


def needed(share: float) -> int:
    """The least number of rows, all of them right, that reach a share."""
    return math.ceil(math.log(IN_TURN) / math.log(share)) if share < 1 else sys.maxsize


def at_most(wrong: int, n: int, share: float) -> float:
    """The probability that at most `wrong` of n answers are wrong if `share` of all answers, below 1, is right."""
    k = np.arange(1, wrong + 1)
    ways = np.concatenate([[0.0], np.cumsum(np.log(n - k + 1) - np.log(k))])
    k = np.arange(wrong + 1)
    return float(np.exp(ways + k * math.log1p(-share) + (n - k) * math.log(share)).sum())


def at_least(found: int, n: int) -> float:
    """The share of which `found` of n is a sample, at least: the lower bound of Clopper and Pearson (1934), which holds
    with CERTAINTY.
    """
    low, high = 0.0, 1.0
    for _ in range(HALVINGS if found else 0):
        middle = (low + high) / 2
        low, high = (low, middle) if at_most(n - found, n, middle) > 1 - CERTAINTY else (middle, high)
    return low


@dataclass(frozen=True)
class _Ranked:
    """Answers by descending probability. p [n]; wrong [n]: how many of the first ones are; most: of them that can be
    sure. Of equally probable answers all are counted, or none.
    """

    p: NDArray[np.float64]
    wrong: NDArray[np.int64]
    most: int

    @classmethod
    def of(cls, probabilities: Sequence[float] | np.ndarray, right: Sequence[bool] | np.ndarray,
           unlike: float) -> _Ranked:
        p = np.asarray(probabilities, np.float64)
        order = np.argsort(-p, kind="stable")
        wrong = np.cumsum(~np.asarray(right, bool)[order])
        return cls(p[order], wrong, min(math.ceil(p.size * (1 - unlike)), p.size - 1))

    @property
    def n(self) -> int:
        return self.p.size

    def sure(self, share: float) -> int:
        """The number of the most probable answers that are sure for a share."""
        if self._passes(r := self._whole(self.most), share, ALL):
            return r
        found = 0
        for first in _turns(share, self.most):
            if not self._passes(r := self._whole(first), share, IN_TURN):
                break
            found = r
        return found

    def above(self, r: int) -> float:
        """The least probability above that of all but the first r answers."""
        return float(np.nextafter(self.p[r], math.inf) if r < self.n else self.p[-1])

    def _whole(self, r: int) -> int:
        """The first r answers, and those that are as probable as the last of them."""
        return int(np.searchsorted(-self.p, -self.p[r - 1], side="right"))

    def _passes(self, r: int, share: float, level: float) -> bool:
        return at_most(int(self.wrong[r - 1]), r, share) <= level


@cache
def _turns(share: float, most: int) -> tuple[int, ...]:
    """The numbers of most probable answers that are tested, one after another: the least of which none, one, two, ...
    may be wrong.
    """
    found: list[int] = []
    wrong = 0
    while (r := _least(wrong, share, most)) <= most:
        found.append(r)
        wrong = max(wrong + 1, int(wrong * GROWTH))
    return tuple(found)


def _least(wrong: int, share: float, most: int) -> int:
    """The least number of answers that reach a share though some are wrong; above most for none up to there."""
    return bisect_left(range(most + 1), x=True, lo=wrong + 1, key=lambda n: at_most(wrong, n, share) <= IN_TURN)


def _of_shares(rows: int, least: float, right: float, answered: float) -> tuple[tuple[float, float, float], ...]:
    """The level of an earlier edgetune, which kept shares of the rows themselves: of its first one, all answers but the
    least probable tenth, which was not chosen by what is right.
    """
    n = round(answered * rows)
    wrong = n - math.ceil(right * n - 1e-6)
    reached = [share for share in SHARES if at_most(wrong, n, share) <= 1 - CERTAINTY]
    return ((least, reached[-1], answered),) if reached else ()


def sureness_of(found: Artifact, source: str, name: str = ANSWERS) -> Sureness | None:
    """Which answers of an adapter are sure, or which kinds. Raises FormatError for a damaged one. source: names it."""
    try:
        return Sureness.of_json(written) if (written := found.facts.get(name)) else None
    except (KeyError, TypeError, ValueError) as error:
        raise FormatError(f"{source} is damaged: its sureness is not readable ({error})",
                          "take an earlier adapter") from None
