"""Supervised fine-tuning: imitate the answers of the rows."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray

from ..data.packing import Batch, Example
from .base import Objective, Signal, register


@register
@dataclass(frozen=True)
class Sft(Objective):
    """L = -(1/N) sum_t w_t logp_t with the rows' weights w, N = sum_t |w_t|."""

    name: ClassVar[str] = "sft"
    method: ClassVar[str] = "supervised"

    def count(self, examples: Sequence[Example]) -> float:
        return sum(float(np.abs(example.weights[1:]).sum(dtype=np.float64)) for example in examples)

    def weights(self, logp: NDArray[np.float32], batch: Batch) -> Signal:
        w = batch.supervised_weights
        return Signal(w, -float(np.dot(logp.astype(np.float64), w.astype(np.float64))))
