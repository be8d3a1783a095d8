"""Contrastive learning of vectors: a query is nearer to its own passage than to those of the other rows of a step (van
den Oord et al. 2018, InfoNCE). For encoders.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from ..adapters.heads import VECTOR, HeadKind
from ..data import paired
from ..data.packing import Batch, Example, grouped_indices
from ..data.rows import RowParser
from ..errors import DataError
from ..options import option
from .base import Objective, Signal, register


@register
@dataclass(frozen=True)
class Embed(Objective):
    """L = -(1/N) sum over N queries of log softmax(cos(query, passage) / temperature), over the passages of a step.

    Passages that are not a query's own count as wrong, also those of `negative`; one with the very same tokens does
    not count.
    """

    name: ClassVar[str] = "embed"
    needs_logp: ClassVar[bool] = True
    sees_step: ClassVar[bool] = True
    heads: ClassVar[tuple[HeadKind, ...]] = (VECTOR,)
    rows: ClassVar[RowParser] = paired
    defaults: ClassVar[Mapping[str, Any]] = {"lr": 5e-4, "rank": 16, "epochs": 3.0, "batch_size": 32}
    temperature: float = option(0.05, "Divisor of the cosines: lower, and the nearest wrong passages count more.",
                                low=0.001, high=10.0)

    def count(self, examples: Sequence[Example]) -> float:
        return len(grouped_indices(examples))

    def prepared(self, examples: Sequence[Example]) -> list[Example]:
        if len(grouped_indices(examples)) == 1:
            raise DataError("there is one pair, and a query needs passages of others to be compared with",
                            "add rows, or hold more of them out")
        return [*examples]

    def weights(self, logp: NDArray[np.float32], batch: Batch) -> Signal:
        """logp: the vectors [S, D] of the texts."""
        groups = grouped_indices(batch.examples)
        queries = np.array([group[0] for group in groups])
        passages = np.array([*(group[1] for group in groups), *(i for group in groups for i in group[2:])])
        q = logp[queries].astype(np.float64)
        p = logp[passages].astype(np.float64)
        z = q @ p.T / self.temperature
        z[self._repeats(batch, passages, len(groups))] = -np.inf
        own = np.arange(len(groups))
        highest = z.max(1)
        lse = highest + np.log(np.exp(z - highest[:, None]).sum(1))
        losses = lse - z[own, own]
        right = z.argmax(1) == own
        dz = np.exp(z - lse[:, None])
        dz[own, own] -= 1
        dz /= self.temperature
        a = np.zeros(logp.shape, np.float64)
        np.add.at(a, queries, -dz @ p)
        np.add.at(a, passages, -dz.T @ q)
        return Signal(a.astype(np.float32), float(losses.sum()),
                      {"accuracy": (float(right.sum()), float(right.size))}, losses=losses)

    @staticmethod
    def _repeats(batch: Batch, passages: NDArray[np.int64], n: int) -> NDArray[np.bool_]:
        """Which of the passages have the same tokens as a query's own, but for this itself: [n, passages]."""
        texts = [batch.examples[i].tokens.tobytes() for i in passages]
        numbers = {text: number for number, text in enumerate(texts)}
        same = np.array([numbers[text] for text in texts])
        found: NDArray[np.bool_] = same[:n, None] == same[None]
        found[np.arange(n), np.arange(n)] = False
        return found
