"""The average of arrays that several devices sent: the weighted mean, or one that a few wrong devices do not move.

Trimmed mean and median are of each value alone (Yin et al. 2018, arXiv:1803.01498), and count every device once.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import NDArray

from ..rounds.options import MEAN, MEDIAN, TRIMMED

Floats = NDArray[np.float64]
Average = Callable[[NDArray[np.float64], Sequence[float], float], Floats]


def weighted_mean(values: Floats, weights: Sequence[float], trim: float) -> Floats:  # noqa: ARG001
    """The sum over devices of weight times value. values [devices, ...]; weights sum to 1."""
    return np.tensordot(np.asarray(weights), values, axes=1)


def trimmed_mean(values: Floats, weights: Sequence[float], trim: float) -> Floats:  # noqa: ARG001
    """The mean without the share `trim` of the devices at each end, rounded down; at least one device is left."""
    count = len(values)
    cut = min(int(trim * count), (count - 1) // 2)
    return np.asarray(np.sort(values, axis=0)[cut:count - cut].mean(axis=0))


def median(values: Floats, weights: Sequence[float], trim: float) -> Floats:  # noqa: ARG001
    """The median of each value over the devices."""
    return np.asarray(np.median(values, axis=0))


AVERAGES: dict[str, Average] = {MEAN: weighted_mean, TRIMMED: trimmed_mean, MEDIAN: median}
