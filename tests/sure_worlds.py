"""Worlds of answers with their probabilities, and how many of the sure ones are right in truth, by plain numpy."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

Floats = np.ndarray
DRAWN = 400_000  # answers by which the truth is known


def _values(values: list[float], shares: list[float]) -> Callable[[np.random.Generator, int], Floats]:
    return lambda rng, n: rng.choice(values, n, p=shares)


def _two_humps(rng: np.random.Generator, n: int) -> Floats:
    return np.where(rng.random(n) < 0.8, rng.beta(30, 2, n), rng.beta(4, 6, n))


WORLDS: dict[str, tuple[Callable[[np.random.Generator, int], Floats], Callable[[Floats], Floats]]] = {
    "calibrated, 80 % right": (lambda rng, n: rng.beta(4, 1, n), lambda p: p),
    "calibrated, 90 % right": (lambda rng, n: rng.beta(9, 1, n), lambda p: p),
    "over-confident": (lambda rng, n: rng.beta(9, 1, n), lambda p: 0.6 + 0.35 * p),
    "two humps": (_two_humps, lambda p: np.where(p > 0.6, 0.985, 0.5)),
    "probabilities that say nothing": (lambda rng, n: rng.random(n), lambda p: np.full(p.shape, 0.8999)),
    "the most probable are worse": (lambda rng, n: rng.random(n), lambda p: 1 - 0.2 * p),
    "waves": (lambda rng, n: rng.random(n), lambda p: 0.9 + 0.1 * np.sin(20 * p)),
    "three probabilities": (_values([0.99, 0.9, 0.6], [0.5, 0.3, 0.2]),
                            lambda p: np.select([p > 0.95, p > 0.8], [0.97, 0.88], 0.5)),
    "two probabilities, the greater is worse": (_values([0.99, 0.9], [0.3, 0.7]),
                                                lambda p: np.where(p > 0.95, 0.85, 0.92)),
    "all are right": (lambda rng, n: rng.random(n), lambda p: np.ones(p.shape))}
"""(draws n probabilities, the probability that an answer with such a probability is right)"""


class Truth:
    """What is known of a world: how many answers are at least as probable as a limit, and which share is right."""

    def __init__(self, name: str) -> None:
        self._draw, self._right = WORLDS[name]
        p = self._draw(np.random.default_rng(0), DRAWN)
        order = np.argsort(-p)
        self._p = -p[order]
        self._shares = np.cumsum(self._right(p)[order]) / np.arange(1, DRAWN + 1)

    def draw(self, rng: np.random.Generator, n: int) -> tuple[Floats, Floats]:
        p = self._draw(rng, n)
        return p, rng.random(n) < self._right(p)

    def right(self, least: float) -> float:
        """The share of right answers among those that are at least as probable; 1 if there are none."""
        n = np.searchsorted(self._p, -least, side="right")
        return float(self._shares[n - 1]) if n else 1.0
