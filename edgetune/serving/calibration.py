"""Whether the probabilities of a head hold: by its answers to questions that it did not learn.

A temperature T divides the head's outputs, so that log p of the right labels is greatest (Guo et al. 2017, On
Calibration of Modern Neural Networks). It changes no answer, only how sure it is. A regression on vectors is far too
unsure, so that T is often below 1. Before any answer log T is taken to be near 0, normal with the deviation SPREAD: few
answers that are all right do not show that each one will be. The error of calibration that chance alone gives is that
of labels drawn by the probabilities themselves.
Letters: n answers, k labels.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..adapters.base import Artifact
from ..errors import FormatError
from .sureness import Sureness

NAME = "calibration"  # among an adapter's facts
COOLEST, WARMEST = 0.2, 5.0  # temperatures
SPREAD = 0.5  # of log T
HALVINGS = 40  # of the range in which the temperature is
BINS = 10  # of equally many answers, by their probability
DRAWS = 100  # by which the error that chance gives is known
TINY = 1e-30
ERRORS = (0.05, 0.01)  # shares of wrong answers for which it is told how many are decided alone
Floats = NDArray[np.float32]
Doubles = NDArray[np.float64]


@dataclass(frozen=True)
class Calibration:
    """The calibration of a head. rows: the number of answers, each to a question that was not learned; accuracy: the
    share that is right. brier: the mean sum of (p - right)^2 over the labels, 0 to 2. error: of calibration, expected
    (ECE); by_chance: the one that right probabilities would have. sureness: when an answer is sure; None: too few rows.
    """

    rows: int
    temperature: float = 1.0
    accuracy: float = 0.0
    brier: float = 0.0
    error: float = 0.0
    by_chance: float = 0.0
    sureness: Sureness | None = None

    @classmethod
    def of(cls, p: Floats, classes: NDArray[np.int32], shares: Floats) -> Calibration:
        """Fits the temperature. p: probabilities [n, k] of answers; classes: the right label [n] of each; shares: how
        much each counts [n].
        """
        logp = np.log(np.maximum(p.astype(np.float64), TINY))
        told = np.bincount(classes)[classes] > 1  # no part of the rows could teach a label of one row to the others
        t = temperature(logp[told], classes[told], shares[told]) if told.any() else 1.0
        return replace(cls.measured(cooled(logp, t), classes, shares), temperature=t)

    @classmethod
    def measured(cls, p: Doubles, classes: NDArray[np.int32], shares: Floats) -> Calibration:
        """The figures of probabilities as they are: parameters as of `of`; class -1: a label that was never learned."""
        if not len(classes):
            return cls(0)
        best = p.max(1)
        right = p.argmax(1) == classes
        brier = (p ** 2).sum(1) + 1 - 2 * np.where(classes < 0, 0, p[np.arange(len(classes)), classes])
        known = Sureness.of(best, right) if (shares == 1).all() else None
        return cls(len(classes), 1.0, float(np.average(right, weights=shares)),
                   float(np.average(brier, weights=shares)), _error(best, right), _by_chance(best), known)

    def to_json(self) -> dict[str, Any]:
        return {**vars(self), "sureness": self.sureness and self.sureness.to_json()}

    @classmethod
    def of_json(cls, found: Mapping[str, Any]) -> Calibration:
        """The inverse of `to_json`. Raises KeyError, TypeError or ValueError for what it did not write."""
        t = float(found["temperature"])
        if not COOLEST <= t <= WARMEST:
            raise ValueError(f"temperature {t}")
        figures = {name: float(found[name]) for name in ("accuracy", "brier", "error", "by_chance")}
        return cls(int(found["rows"]), t, **figures,
                   sureness=Sureness.of_json(found["sureness"]) if found["sureness"] else None)


def temperature(logp: Doubles, classes: NDArray[np.int32], shares: Floats) -> float:
    """The likeliest T from COOLEST to WARMEST: the sum of -s log p of the right labels and log^2 T / (2 SPREAD^2) has
    no slope there.
    """
    low, high = math.log(COOLEST), math.log(WARMEST)
    right = logp[np.arange(len(logp)), classes]
    for _ in range(HALVINGS):
        log_t = (low + high) / 2
        t = math.exp(log_t)
        slope = float((shares * (right - (cooled(logp, t) * logp).sum(1))).sum()) / t + log_t / SPREAD ** 2
        low, high = (low, log_t) if slope > 0 else (log_t, high)
    return math.exp((low + high) / 2)


def cooled(logp: NDArray[np.floating], t: float) -> Doubles:
    """The probabilities [n, k] of outputs that are divided by t."""
    z = logp.astype(np.float64) / t
    p: Doubles = np.exp(z - z.max(1, keepdims=True))
    p /= p.sum(1, keepdims=True)
    return p


def _error(p: Doubles, right: NDArray[np.bool_]) -> float:
    """The mean distance of probability and share that is right, over bins of equally many answers."""
    order = np.argsort(p, kind="stable")
    return sum(abs(float(p[part].mean() - right[part].mean())) * part.size for part in np.array_split(order, BINS)
               if part.size) / p.size


def _by_chance(p: Doubles) -> float:
    rng = np.random.default_rng(0)
    return float(np.mean([_error(p, rng.random(p.size) < p) for _ in range(DRAWS)]))


def calibrations_of(found: Artifact, source: str) -> tuple[Calibration, ...]:
    """The calibration of each head of an adapter; () for one without. Raises FormatError for a damaged one. source:
    names it.
    """
    try:
        return tuple(Calibration.of_json(each) for each in found.facts.get(NAME, ()))
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise FormatError(f"{source} is damaged: its calibration is not readable ({error})",
                          "take an earlier adapter") from None
