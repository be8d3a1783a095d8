"""Noise on a device's answer: its change is scaled to a norm at most, and Gaussian noise is added to each value.

This is the step of a device in differential privacy at the level of devices; privacy.py says what it is worth. Noise on
a frozen half's partner stays linear in the sum; on A and B it would multiply (Sun et al. 2024), so it is for the
aggregations that freeze one half.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ....errors import UsageError

Arrays = dict[str, NDArray[np.float16]]


@dataclass(frozen=True)
class Noise:
    """most: the L2 norm of all values of an answer; larger ones are scaled down. multiplier: of `most`, which is the
    standard deviation of the noise on each value.
    """

    most: float
    multiplier: float

    @property
    def deviation(self) -> float:
        """Returns the standard deviation of the noise on each value."""
        return self.most * self.multiplier

    def check(self) -> Noise:
        """Returns self; raises UsageError for numbers that are not above 0."""
        if not (0.0 < self.most < math.inf and 0.0 < self.multiplier < math.inf):
            raise UsageError(f"noise is {self.multiplier:g} with the norm {self.most:g}", "give both above 0")
        return self


def noisy(arrays: Arrays, noise: Noise, seed: int | None = None) -> Arrays:
    """Returns the arrays, clipped and with noise. seed: for tests [the system's entropy]."""
    rng = np.random.default_rng(seed)
    norm = math.sqrt(sum(float(np.sum(array.astype(np.float64) ** 2)) for array in arrays.values()))
    scale = min(1.0, noise.most / norm) if norm else 1.0
    return {name: (scale * array + noise.deviation * rng.standard_normal(array.shape)).astype(np.float16)
            for name, array in arrays.items()}
