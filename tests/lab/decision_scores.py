"""What probabilities of answers are worth: right answers, Brier score, calibration error, what may be decided alone.

Letters: n rows, k options, s seeds.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from lab.common import Result
from lab.decision_tasks import Answers
from numpy.typing import NDArray

from edgetune.serving.sureness import Sureness

WRONG = 0.05  # share of what is decided alone that may be wrong
BINS = 15  # of equally many rows, by the probability of the answer
CHANCE = 200  # draws of right and wrong by which the calibration error of perfect probabilities is known
RESAMPLED = 1000
Floats = NDArray[np.floating]


@dataclass(frozen=True)
class Told:
    """Probabilities [n, k] of the options for the unseen rows. limit: the least probability of an answer that is
    decided alone.
    """

    p: Floats
    limit: float = np.inf


def is_right(p: Floats, right: Answers) -> NDArray[np.bool_]:
    found: NDArray[np.bool_] = p.argmax(1) == right
    return found


def brier(p: Floats, right: Answers) -> Floats:
    """Of each row the sum of squares over all options, 0 to 2, [n]."""
    found: Floats = ((p - np.eye(p.shape[1])[right]) ** 2).sum(1)
    return found


def calibration_error(top: Floats, right: Floats) -> float:
    """The mean distance between probability and right answers over BINS bins with the same number of rows. top:
    probability of each answer, [n]; right: whether it is, [n].
    """
    order = np.argsort(top, kind="stable")
    return float(sum(abs((top[part] - right[part]).sum()) for part in np.array_split(order, BINS)) / top.size)


def by_chance(top: Floats, seed: int) -> float:
    """The same for answers that are right as often as their probability says."""
    chance = np.random.default_rng(seed)
    return float(np.mean([calibration_error(top, chance.random(top.size) < top) for _ in range(CHANCE)]))


def limit_of(held: Floats | None, right: Answers) -> float:
    """The least probability of an answer that may be decided alone, by probabilities [n, k] of learned rows from models
    that did not learn them; infinite without any that is known.
    """
    found = Sureness.of(held.max(1), is_right(held, right)) if held is not None and len(held) else None
    return found.threshold(1 - WRONG) if found else np.inf


def scores(told: Told, right: Answers) -> Result:
    """decided: the share decided alone; wrong: how many of these are wrong."""
    top = told.p.max(1)
    hits = is_right(told.p, right)
    alone = top >= told.limit
    return {"accuracy": float(hits.mean()), "brier": float(brier(told.p, right).mean()),
            "ece": calibration_error(top, hits), "ece_chance": by_chance(top, 0), "decided": float(alone.mean()),
            "wrong": int((alone & ~hits).sum()), "asked": int(right.size), "limit": min(float(told.limit), 2.0)}


def interval(values: Sequence[Floats], seed: int = 0) -> tuple[float, float, float]:
    """The mean of values of each row, [s][n], and its 95 % interval over draws of seeds and of rows."""
    found = np.stack([np.asarray(each, np.float64) for each in values])
    chance = np.random.default_rng(seed)
    s, n = found.shape
    means = [found[chance.integers(s, size=s)].mean(0)[chance.integers(n, size=n)].mean() for _ in range(RESAMPLED)]
    low, high = np.quantile(means, (0.025, 0.975))
    return float(found.mean()), float(low), float(high)
