"""Whether a difference that was counted may be chance."""

from __future__ import annotations

import math


def sign_test(wins: int, losses: int) -> float:
    """Exact probability of at most `wins` wins where win and loss are equally likely."""
    n = wins + losses
    return float(sum(math.comb(n, k) for k in range(wins + 1)) / 2**n)
