"""What Gaussian noise is worth: epsilon at a delta, of differential privacy at the level of devices.

A release adds to a sum, in which a device moves at most a norm, noise with a standard deviation of `multiplier` times
that norm. Its loss mu = 1 / multiplier adds up over releases as the root of the sum of squares, exactly, because a
Gaussian mechanism of many releases is one of a larger mu (Dong, Roth and Su 2022, arXiv:1905.02383). Epsilon of mu is
exact as well (Balle and Wang 2018, arXiv:1805.06530, theorem 8). If each device takes part by chance, and nobody
sees who does, Renyi differential privacy gives a bound (Mironov, Talwar and Zhang 2019, arXiv:1908.10530).

Epsilon compares what a device sent with an answer that changes nothing. Between any two answers of a device it is that
of twice the mu.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

from ...errors import UsageError
from .rounds.task import RoundRecord

DELTA = 1e-5
ORDERS = (*range(2, 65), 128, 256, 512, 1024)  # of Renyi's divergence: whole numbers, for which there is a finite sum
FAR = 20.0  # standard deviations from which a continued fraction gives the tail, which erfc still has there
STEPS = 200  # of a bisection, more than a double has bits


def total(losses: Iterable[float]) -> float:
    """Returns the mu of several releases together."""
    return math.sqrt(sum(mu * mu for mu in losses))


def epsilon_of(mu: float, delta: float = DELTA) -> float:
    """Returns the least epsilon of releases whose loss is mu, at a delta above 0 and below 1; infinite for an infinite
    mu.
    """
    _check_delta(delta)
    if not math.isfinite(mu):
        return math.inf
    if mu <= 0.0 or delta_of(0.0, mu) <= delta:
        return 0.0
    return _least(lambda epsilon: delta_of(epsilon, mu) <= delta)


def delta_of(epsilon: float, mu: float) -> float:
    """Returns the least delta of releases whose loss is mu > 0, at an epsilon of 0 or more."""
    near = epsilon / mu - mu / 2.0
    far = epsilon / mu + mu / 2.0
    density = math.exp(-near * near / 2.0) / math.sqrt(2.0 * math.pi)
    if near > 0.0:  # both terms are the density times a ratio, so that no large numbers cancel
        return density * (_tail_ratio(near) - _tail_ratio(far))
    return math.erfc(near / math.sqrt(2.0)) / 2.0 - density * _tail_ratio(far)


def sampled_epsilon(multiplier: float, share: float, rounds: int, delta: float = DELTA) -> float:
    """Returns a bound of epsilon if in each round each device takes part with this chance, which others do not see."""
    _check_delta(delta)
    if not 0.0 < share <= 1.0:
        raise UsageError(f"share is {share:g}", "give it above 0 and at most 1")
    if share == 1.0:
        return epsilon_of(math.sqrt(rounds) / multiplier, delta)
    return max(min(_of_order(order, rounds * _divergence(order, multiplier, share), delta) for order in ORDERS), 0.0)


def multiplier_for(epsilon: float, share: float, rounds: int, delta: float = DELTA) -> float:
    """Returns the least noise multiplier whose `sampled_epsilon` is at most this one. Raises UsageError for an epsilon
    of 0.
    """
    if not 0.0 < epsilon < math.inf:
        raise UsageError(f"epsilon is {epsilon:g}", "give it above 0, such as 8")
    return _least(lambda multiplier: sampled_epsilon(multiplier, share, rounds, delta) <= epsilon)


def _divergence(order: int, multiplier: float, share: float) -> float:
    """Renyi's divergence of one round at a whole order."""
    terms = [math.lgamma(order + 1) - math.lgamma(k + 1) - math.lgamma(order - k + 1) + k * math.log(share)
             + (order - k) * math.log1p(-share) + (k * k - k) / (2.0 * multiplier**2) for k in range(order + 1)]
    largest = max(terms)
    return (largest + math.log(sum(math.exp(term - largest) for term in terms))) / (order - 1)


def _of_order(order: int, divergence: float, delta: float) -> float:
    """Epsilon of a divergence (Canonne, Kamath and Steinke 2020, arXiv:2004.00010, proposition 12)."""
    return divergence + math.log1p(-1.0 / order) - (math.log(delta) + math.log(order)) / (order - 1)


def _tail_ratio(x: float) -> float:
    """P(Z > x) over the density at x > 0, of a standard normal Z."""
    if x < FAR:
        return math.erfc(x / math.sqrt(2.0)) * math.exp(x * x / 2.0) * math.sqrt(math.pi / 2.0)
    below = x
    for k in range(20, 0, -1):
        below = x + k / below
    return 1.0 / below


def _least(holds: Callable[[float], bool]) -> float:
    """Returns the least number above 0 from which on a condition holds, rounded up."""
    high = 1.0
    while not holds(high):
        high *= 2.0
    low = 0.0
    for _ in range(STEPS):
        middle = (low + high) / 2.0
        if middle in (low, high):
            break
        low, high = (low, middle) if holds(middle) else (middle, high)
    return high


def _check_delta(delta: float) -> None:
    if not 0.0 < delta < 1.0:
        raise UsageError(f"delta is {delta:g}", "give it above 0 and below 1, such as 1e-5")


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
    known = [math.inf if mu is None else mu for mu in losses]  # a round without noise has no bound
    last, in_all = (epsilon_of(mu, delta) for mu in (known[-1], total(known)))
    return Epsilon(last if math.isfinite(last) else None, in_all if math.isfinite(in_all) else None)
