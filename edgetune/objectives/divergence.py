"""Divergences of two distributions over the same outcomes: k tokens, and all others as one.

q is the teacher's, p the student's. D is KL(q || p) (forward), KL(p || q) (reverse), or generalized Jensen-Shannon
(jsd, arXiv 2306.13649): alpha KL(q || m) + (1 - alpha) KL(p || m) with m = alpha q + (1 - alpha) p.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ..errors import UsageError

Floats = NDArray[np.float64]
KINDS = ("forward", "reverse", "jsd")
ALPHA = 0.5
LEAST = 1e-6  # the least that a probability counts as in a ratio
RARER = 100  # times that the rest is rarer to the student at most, as a head's pass is rounded (models/choices.py)


@dataclass(frozen=True)
class Divergence:
    """A divergence of one kind. alpha: counts with jsd alone."""

    kind: str
    alpha: float = ALPHA

    def check(self, option: str) -> None:
        """Raises UsageError for an alpha that does nothing. option: its name."""
        if self.kind != "jsd" and self.alpha != ALPHA:
            raise UsageError(f"{option} is {self.alpha:g}, and the divergence {self.kind} has none",
                             "leave it out, or give --divergence jsd")

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


def with_rest(probabilities: Floats) -> Floats:
    """Adds all other outcomes as one, [S, k] -> [S, k + 1]; no probability is below LEAST."""
    rest = 1 - probabilities.sum(1, keepdims=True)
    found: Floats = np.maximum(np.concatenate([probabilities, rest], axis=1), LEAST)
    return found
