"""Two objectives that no other file knows: their registration alone brings them to library, command line and daemon.

Focal weighs tokens by their own log-probability; Pairs learns which of two answers is better, from rows that this
module reads.
"""

from __future__ import annotations

import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar, cast

import numpy as np

from edgetune.data import rows
from edgetune.data.packing import Batch, Example
from edgetune.data.rows import RowParser
from edgetune.errors import DataError
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


# ---- pairs, whose rows this module reads -----------------------------------------------------------------------------

EXPECTED = "prompt with better and worse"


def shape_of(row: Any) -> str:
    if not isinstance(row, Mapping) or set(row) != {"prompt", "better", "worse"}:
        raise DataError("the row is no pair", f"expected is {EXPECTED}")
    return "pair"


def check_learnable(row: Any) -> str:
    shape = shape_of(row)
    if not row["better"].strip():
        raise DataError("the better answer is empty", "write it")
    return shape


def examples_of(row: Any, _shape: str, *options: Any) -> Iterable[Example]:
    for key in ("better", "worse"):
        answered = {"prompt": row["prompt"], "completion": row[key]}
        yield from (replace(e, group=1) for e in rows.examples_of(answered, "prompt", *options))


@register
@dataclass(frozen=True)
class Pairs(Objective):
    """L = -(1/N) sum log sigmoid(beta (log p(better) - log p(worse))) over N pairs."""

    name: ClassVar[str] = "pairs"
    method: ClassVar[str] = "pairs"
    needs_logp: ClassVar[bool] = True
    rows: ClassVar[RowParser] = cast(RowParser, sys.modules[__name__])
    beta: float = option(0.1, "How sharply a pair counts.", low=0.0)

    def count(self, examples: Sequence[Example]) -> float:
        return len(examples) / 2

    def weights(self, logp: np.ndarray, batch: Batch) -> Signal:
        if batch.reference is not None:
            logp = logp - batch.reference
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


class Preferences(Pairs):
    """The same relative to the base: the sigmoid loss of DPO (Rafailov et al. 2023)."""

    needs_reference: ClassVar[bool] = True
