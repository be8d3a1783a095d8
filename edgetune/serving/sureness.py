"""When an answer of an encoder is sure: by the probabilities of its answers to questions that it did not learn.

An answer is sure for a share, such as 99 %, if of the answers that are at least as probable this share was right. It is
also more probable than the least tenth: a less probable one is to a question unlike the learned ones. Of JSON with
values from the question the kind, its fields of few values, is sure or not by itself; likeness.py says which questions
are like the learned ones.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from ..adapters.base import Artifact
from ..errors import FormatError

ANSWERS = "sureness"  # among an adapter's facts
KINDS = "kinds"  # likewise; only where answers have values from the question
LEAST_ROWS = 20  # of fewer answers no share is known
UNLIKE = 0.1  # share of the answers, the least probable ones, of which none is sure
STEPS = 1000  # shares that are told apart: thousandths


@dataclass(frozen=True)
class Sureness:
    """rows: the number of answers. levels: (least probability, share that was right, share that was answered) of the
    answers that are at least as probable, by ascending shares that were right.
    """

    rows: int
    levels: tuple[tuple[float, float, float], ...]

    @classmethod
    def of(cls, probabilities: Sequence[float] | np.ndarray, right: Sequence[bool] | np.ndarray,
           unlike: float = UNLIKE) -> Sureness | None:
        """Levels from answers [n] to questions that were not learned; None for fewer than LEAST_ROWS."""
        n = len(probabilities)
        if n < LEAST_ROWS:
            return None
        order = np.argsort(-np.asarray(probabilities, np.float64), kind="stable")
        p = np.asarray(probabilities, np.float64)[order]
        shares = np.cumsum(np.asarray(right, np.float64)[order]) / np.arange(1, n + 1)
        is_last = np.append(p[1:] < p[:-1], True)  # of those that are equally probable
        levels: list[tuple[float, float, float]] = []
        for i in np.flatnonzero(is_last & (p >= p[math.ceil(n * (1 - unlike)) - 1]))[::-1]:
            share = math.floor(shares[i] * STEPS + 1e-6) / STEPS
            if not levels or share > levels[-1][1]:
                levels.append((float(p[i]), share, (int(i) + 1) / n))
        return cls(n, tuple(levels))

    def threshold(self, share: float) -> float:
        """The least probability of a sure answer; infinite if not even the most probable ones reach this share."""
        return self._level(share)[0]

    def answered(self, share: float) -> float:
        """The share of questions with a sure answer."""
        return self._level(share)[2]

    @property
    def surest(self) -> float:
        """The highest share that is reached."""
        return self.levels[-1][1]

    def _level(self, share: float) -> tuple[float, float, float]:
        return next((level for level in self.levels if level[1] >= share), (math.inf, 1.0, 0.0))

    def to_json(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def of_json(cls, found: Mapping[str, Any]) -> Sureness:
        """The inverse of `to_json`. Raises KeyError, TypeError or ValueError for what it did not write."""
        levels = tuple((float(p), float(right), float(answered)) for p, right, answered in found["levels"])
        if not levels:
            raise ValueError("no levels")
        return cls(int(found["rows"]), levels)


def sureness_of(found: Artifact, source: str, name: str = ANSWERS) -> Sureness | None:
    """Which answers of an adapter are sure, or which kinds. Raises FormatError for a damaged one. source: names it."""
    try:
        return Sureness.of_json(written) if (written := found.facts.get(name)) else None
    except (KeyError, TypeError, ValueError) as error:
        raise FormatError(f"{source} is damaged: its sureness is not readable ({error})",
                          "take an earlier adapter") from None
