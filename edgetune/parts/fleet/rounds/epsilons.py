"""What the noise of all rounds hides together: epsilon of the last round and in all, by a task's records."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from ..privacy import DELTA, epsilon_of, total
from .task import RoundRecord


@dataclass(frozen=True)
class Epsilon:
    """last: of the last round; total: of all rounds together. None if there is no bound."""

    last: float | None
    total: float | None


@dataclass(frozen=True)
class NoiseSpent:
    """answer: against whoever sees the answers of a device. sum: against whoever sees only the sums, and so the tasks
    and adapters.
    """

    delta: float
    answer: Epsilon
    sum: Epsilon


def spent(records: Sequence[RoundRecord], delta: float = DELTA) -> NoiseSpent | None:
    """Returns what rounds have spent; None if none had noise. A device is taken to have answered all of them."""
    answers = [record.mu_answer for record in records]
    sums = [record.mu_sum for record in records]
    if all(mu is None for mu in answers + sums):
        return None
    return NoiseSpent(delta, _epsilon(answers, delta), _epsilon(sums, delta))


def _epsilon(losses: Sequence[float | None], delta: float) -> Epsilon:
    bounds = [math.inf if mu is None else epsilon_of(mu, delta) for mu in (losses[-1], _all(losses))]
    last, in_all = (bound if math.isfinite(bound) else None for bound in bounds)
    return Epsilon(last, in_all)


def _all(losses: Sequence[float | None]) -> float | None:
    known = [mu for mu in losses if mu is not None]
    return total(known) if len(known) == len(losses) else None
