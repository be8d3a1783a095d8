"""The common part of objectives by which an encoder learns labels: of a document, or of its tokens."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from ..data import labelled
from ..data.packing import Batch, Example
from ..data.rows import RowParser
from .base import Objective, Signal


@dataclass(frozen=True)
class Labelling(Objective):
    """L = -(1/N) sum w log p over the labels of a step, N = sum w: 1 for a label of a document, the weight of a token.
    """

    rows: ClassVar[RowParser] = labelled
    defaults: ClassVar[Mapping[str, Any]] = {"lr": 2e-3, "rank": 16, "epochs": 15.0}

    @property
    @abstractmethod
    def is_fitted(self) -> bool:
        """Whether its labels are known."""

    def count(self, examples: Sequence[Example]) -> float:
        return sum(example.document.size + float(example.weights.sum(dtype=np.float64)) for example in examples)

    def weights(self, logp: NDArray[np.float32], batch: Batch) -> Signal:
        w = batch.supervised_weights
        return Signal(w, -float(np.dot(logp.astype(np.float64), w.astype(np.float64))))
