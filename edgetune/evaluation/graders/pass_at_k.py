"""pass@k: how probable it is that one of k answers passes."""

from __future__ import annotations

import math
from collections.abc import Sequence


def pass_at_k(passed: Sequence[tuple[int, int]], k: int) -> float:
    """The mean over prompts of 1 - C(n-c, k) / C(n, k), with (n answers, c of which pass) a prompt: an estimate without
    bias (Chen et al. 2021, arXiv 2107.03374, equation 1). Every n must be k or more.
    """
    if not passed or k < 1 or min(n for n, _ in passed) < k:
        raise ValueError(f"pass@{k} of {len(passed)} prompts")
    return sum(1 - math.comb(n - c, k) / math.comb(n, k) for n, c in passed) / len(passed)
