"""What counts of right answers say: how sure a share is, and whether a difference may be chance."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

Z = 1.959964  # standard deviations on either side that hold 95 % of a normal distribution
MOST_FLIPS = 20


def won_and_lost(before: Sequence[float], after: Sequence[float]) -> tuple[int, int]:
    """(how many values are higher after, how many are lower), pair by pair."""
    pairs = list(zip(before, after, strict=True))
    return sum(new > old for old, new in pairs), sum(new < old for old, new in pairs)


def sign_test(wins: int, losses: int) -> float:
    """Exact probability of at most `wins` wins where win and loss are equally likely."""
    n = wins + losses
    return float(sum(math.comb(n, k) for k in range(wins + 1)) / 2**n)


def two_sided(wins: int, losses: int) -> float:
    """Exact probability of a difference as large as this one, in either direction, where both are equally likely."""
    return min(1.0, 2 * sign_test(min(wins, losses), max(wins, losses)))


def wilson(right: int, n: int) -> tuple[float, float]:
    """The 95 % interval of the share of which `right` of n is a sample (Wilson, 1927); n > 0."""
    share = right / n
    middle = share + Z**2 / (2 * n)
    half = Z * math.sqrt(share * (1 - share) / n + Z**2 / (4 * n**2))
    scale = 1 + Z**2 / n
    return max(0.0, (middle - half) / scale), min(1.0, (middle + half) / scale)


def flip_test(differences: Sequence[float]) -> float:
    """Exact probability of a sum at least as large as that of these differences, if the sign of each were chance
    (Fisher's randomization test for pairs, 1935); 1 without differences. For at most MOST_FLIPS of them.
    """
    if not differences:
        return 1.0
    if len(differences) > MOST_FLIPS:
        raise ValueError(f"{len(differences)} differences, {MOST_FLIPS} at most")
    sums = np.zeros(1)
    for value in differences:
        sums = np.concatenate([sums + value, sums - value])
    reached = float(np.sum(differences))
    return float(np.mean(sums >= reached - 1e-12 * max(1.0, abs(reached))))
