"""Weighted updates as whole numbers modulo 2^32, whose sum can be taken in secret (masks.py).

A device sends its weight w, from 0 to 1, times its update, and w itself, so that the sum gives the weighted mean. V
values.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ...errors import NumericsError, UsageError

Words = NDArray[np.uint32]
PIECE = 1 << 16  # values that are converted at a time
LIMIT = 0.25  # values of an update beyond it are cut off: an epoch at a usual rate moves them by hundredths


@dataclass(frozen=True)
class FixedPoint:
    """limit: values beyond +-limit are cut off. devices: how many are summed at most, so that no sum is ambiguous."""

    limit: float
    devices: int

    @property
    def levels(self) -> int:
        """Steps from 0 to the limit."""
        return (2**31 - 1) // self.devices

    def encode(self, update: NDArray[np.float16] | NDArray[np.float32], weight: float) -> Words:
        """[V + 1]: the weighted update [V], and the weight. Raises NumericsError for values that are not finite."""
        if not 0 < weight <= 1:
            raise UsageError(f"the weight of an update is {weight:g}", "it must be above 0 and at most 1")
        words: Words = np.empty(update.size + 1, np.uint32)
        for at in range(0, update.size, PIECE):
            piece = update[at:at + PIECE].astype(np.float64)
            if not np.isfinite(piece).all():
                raise NumericsError("an update has values that are not finite", "train again with a lower --lr")
            cut = np.clip(piece, -self.limit, self.limit)
            words[at:at + piece.size] = self._whole(cut * (weight / self.limit))
        words[-1:] = self._whole(np.array([weight]))
        return words

    def _whole(self, shares: NDArray[np.float64]) -> Words:
        """Shares of the limit, from -1 to 1, as whole numbers."""
        return np.rint(shares * self.levels).astype(np.int64).astype(np.uint32)

    def mean(self, total: Words) -> tuple[NDArray[np.float64], float]:
        """The weighted mean [V] and the sum of the weights, from the sum [V + 1]. Raises NumericsError for a sum that
        no devices can have.
        """
        found = total.view(np.int32).astype(np.float64)
        *_, weight = found
        if weight <= 0 or np.abs(found[:-1]).max(initial=0.0) > weight + self.devices:
            raise NumericsError("the sum of all updates is none that the devices can have: one has sent something else",
                                "repeat the round with fewer devices to find it")
        return found[:-1] * (self.limit / weight), float(weight / self.levels)
