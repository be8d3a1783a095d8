"""Two objectives that no other file knows: their registration alone brings them to library, command line and daemon.

Focal weighs tokens by their own log-probability; Pairs learns which of two answers is better, from rows that
pair_rows reads.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, cast

import numpy as np
import pair_rows

from edgetune.data.packing import Batch, Example
from edgetune.data.rows import RowParser
from edgetune.objectives.base import Objective, Signal, register
from edgetune.options import option


@register
@dataclass(frozen=True)
class Focal(Objective):
    """L = -(1/N) sum w (1 - p)^gamma log p over N supervised tokens (Lin et al. 2017)."""

    name: ClassVar[str] = "focal"
    method: ClassVar[str] = "focal"
    needs_logp: ClassVar[bool] = True
    gamma: float = option(2.0, "How little a sure token counts.", low=0.0, high=10.0)

    def count(self, examples: Sequence[Example]) -> float:
        return float(sum(example.supervised for example in examples))

    def weights(self, logp: np.ndarray, batch: Batch) -> Signal:
        w = batch.supervised_weights.astype(np.float64)
        lp = logp.astype(np.float64)
        p = np.exp(lp)
        rest = np.maximum(1 - p, 1e-12)
        a = w * (rest**self.gamma - self.gamma * p * rest ** (self.gamma - 1) * lp)
        loss = -float(np.sum(w * rest**self.gamma * lp))
        return Signal(a.astype(np.float32), loss, {"sureness": (float(p.sum()), p.size)})


@register
@dataclass(frozen=True)
class Pairs(Objective):
    """L = -(1/N) sum log sigmoid(beta (log p(better) - log p(worse))) over N pairs."""

    name: ClassVar[str] = "pairs"
    method: ClassVar[str] = "pairs"
    needs_logp: ClassVar[bool] = True
    rows: ClassVar[RowParser] = cast(RowParser, pair_rows)
    beta: float = option(0.1, "How sharply a pair counts.", low=0.0)

    def count(self, examples: Sequence[Example]) -> float:
        return len(examples) / 2

    def weights(self, logp: np.ndarray, batch: Batch) -> Signal:
        a = np.zeros(logp.size, np.float32)
        loss = 0.0
        right = 0
        parts = list(batch.parts())
        for (better, good), (worse, bad) in zip(parts[::2], parts[1::2], strict=True):
            assert better.group == worse.group, "a pair was parted"
            margin = self.beta * (float(logp[good].sum()) - float(logp[bad].sum()))
            loss += float(np.logaddexp(0, -margin))
            a[good] = self.beta / (1 + np.exp(margin))
            a[bad] = -a[good][0]
            right += margin > 0
        return Signal(a, loss, {"accuracy": (right, len(parts) / 2)})
