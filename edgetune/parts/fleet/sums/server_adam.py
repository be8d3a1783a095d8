"""FedAdam (Reddi et al. 2021, arXiv:2003.00295, algorithm 2): Adam on the server, whose gradient is the average change.

It evens out rounds in which few devices answer, and values that only few devices move. As in the paper, moments begin
at 0 and tau squared, and are not corrected for that.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

BETA1 = 0.9
BETA2 = 0.99
TAU = 1e-3

Arrays = dict[str, NDArray[np.float32]]


class ServerAdam:
    """first, second: moments by the name of an array; an array that has none begins."""

    def __init__(self, rate: float, moments: Mapping[str, NDArray[np.float32]]) -> None:
        self.rate = rate
        self.moments: Arrays = dict(moments)

    def step(self, name: str, change: NDArray[np.float64]) -> NDArray[np.float64]:
        """Returns the step of an array for its average change, and keeps its moments. Shapes are equal."""
        first = self.moments.get(f"{name}.first", np.zeros(change.shape, np.float32)).astype(np.float64)
        second = self.moments.get(f"{name}.second", np.full(change.shape, TAU**2, np.float32)).astype(np.float64)
        first = BETA1 * first + (1.0 - BETA1) * change
        second = BETA2 * second + (1.0 - BETA2) * change**2
        self.moments[f"{name}.first"] = first.astype(np.float32)
        self.moments[f"{name}.second"] = second.astype(np.float32)
        return np.asarray(self.rate * first / (np.sqrt(second) + TAU))
