"""Divergences of two distributions over the same outcomes: k tokens, and all others as one.

q is the teacher's, p the student's. D is KL(q || p) (forward), KL(p || q) (reverse), or generalized Jensen-Shannon
(jsd, arXiv 2306.13649): alpha KL(q || m) + (1 - alpha) KL(p || m) with m = alpha q + (1 - alpha) p.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from ..errors import UsageError
from ..options import option
from .base import Objective

Floats = NDArray[np.float64]
T = TypeVar("T", bound="Divergent")
KINDS = ("forward", "reverse", "jsd")
ALPHA = 0.5
LEAST = 1e-6  # the least that a probability counts as in a ratio
RARER = 100  # times that the rest is rarer to the student at most, as a head's pass is rounded (models/choices.py)


@dataclass(frozen=True)
class Divergence:
    """A divergence of one kind. alpha: counts with jsd alone."""

    kind: str
    alpha: float = ALPHA

    def of(self, q: Floats, p: Floats) -> tuple[Floats, Floats]:
        """(D of each position [S], dD/dp but for a term that all outcomes share [S, k + 1])."""
        if self.kind == "forward":
            return (q * np.log(q / p)).sum(1), -q / p
        if self.kind == "reverse":
            return (p * np.log(p / q)).sum(1), np.log(p / q)
        m = self.alpha * q + (1 - self.alpha) * p
        each = self.alpha * q * np.log(q / m) + (1 - self.alpha) * p * np.log(p / m)
        return each.sum(1), (1 - self.alpha) * np.log(p / m)

    def learned(self, reference: NDArray[np.float32],
                logp: NDArray[np.float32]) -> tuple[Floats, Floats, NDArray[np.bool_]]:
        """(D [S], a = -dD/dlogp of the k tokens [S, k], whether both find the same of them the likeliest [S]).
        reference, logp [S, k]: log q and log p of the tokens.
        """
        q = with_rest(np.exp(reference.astype(np.float64)))
        p = with_rest(np.exp(logp.astype(np.float64)))
        p[:, -1] = np.maximum(p[:, -1], q[:, -1] / RARER)
        each, slopes = self.of(q, p)
        return each, -p[:, :-1] * (slopes[:, :-1] - slopes[:, -1:]), q[:, :-1].argmax(1) == p[:, :-1].argmax(1)


@dataclass(frozen=True)
class Divergent(Objective):
    """An objective that learns a teacher's distribution by a divergence."""

    divergence: str = option("forward", "From the teacher's distribution to the student's (forward), the other way "
                             "(reverse), or between (jsd).", choices=KINDS)
    distillation_alpha: float = option(ALPHA, "With jsd, the share of the teacher in what both are compared with.",
                                       low=0.001, high=0.999)

    @property
    def distance(self) -> Divergence:
        return Divergence(self.divergence, self.distillation_alpha)

    def check(self: T) -> T:
        """Returns self. Raises UsageError for an option out of its range, and for an alpha that does nothing."""
        super().check()
        if self.divergence != "jsd" and self.distillation_alpha != ALPHA:
            raise UsageError(f"distillation-alpha is {self.distillation_alpha:g}, and the divergence "
                             f"{self.divergence} has none", "leave it out, or give --divergence jsd")
        return self


def with_rest(probabilities: Floats) -> Floats:
    """Adds all other outcomes as one, [S, k] -> [S, k + 1]; no probability is below LEAST."""
    rest = 1 - probabilities.sum(1, keepdims=True)
    found: Floats = np.maximum(np.concatenate([probabilities, rest], axis=1), LEAST)
    return found
