"""Which updates count, and how much: by their norms, and by the tokens that they learned.

The norm of an update is that of the change of the model's weights, over all projections. One device whose rate was too
high, or that lies, would move the sum as far as it likes; after this it moves it at most as far as twice the median.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from statistics import median, median_low
from typing import Any, Protocol

import numpy as np

from ....adapters.lora import Lora, Pair
from ..rounds.options import RoundOptions
from .low_rank_sums import squared_norm, term_of

HEAVIEST = 10  # times the median of the tokens that devices say they learned: none counts for more


class Update(Protocol):
    """What a device learned in a round. device: its name; tokens: supervised ones that it learned."""

    @property
    def device(self) -> str: ...
    @property
    def tokens(self) -> int: ...

    def pair(self, name: str) -> Pair:
        """Returns the pair of a projection after the round."""
        ...

    def began(self, start: Pair) -> Pair:
        """Returns the pair with which the device began: that of the task, or the best one of the device's smaller rank.
        """
        ...


@dataclass(frozen=True, eq=False)
class CountedUpdate:
    """An update that counts. share: its weight, of 1 in all; scale: the factor by which it is clipped, 1 for none."""

    update: Update
    norm: float
    share: float
    scale: float


@dataclass(frozen=True)
class LeftOut:
    device: str
    reason: str


def unknown(_: Update) -> float:
    """Returns the usual norm of an update, which is not known."""
    return math.inf


def screened(updates: Sequence[Update], start: Lora, options: RoundOptions,
             usual: Callable[[Any], float] = unknown) -> tuple[list[CountedUpdate], list[LeftOut]]:
    """Returns (the updates that count, those that are left out and why), each in their order. usual: the norm that an
    update usually has. Of two answers one is half of the median, so above what is usual the lower of the two middle
    ones is taken, by which no update is left out.
    """
    norms = [norm_of(update, start) for update in updates]
    finite = [norm for norm in norms if math.isfinite(norm)]
    middle = median(finite) if finite else 0.0
    most = options.refuse * middle if options.refuse and middle else math.inf
    lower = median_low(finite) if finite else 0.0
    left_out = []
    kept = []
    for update, norm in zip(updates, norms, strict=True):
        if not math.isfinite(norm):
            left_out.append(LeftOut(update.device, "its update is not finite"))
        elif norm > most:
            left_out.append(LeftOut(update.device, f"the norm of its update is {norm:.3g}, more than "
                                    f"{options.refuse:g} times the median of {middle:.3g}"))
        else:
            kept.append((update, norm))
    most_tokens = HEAVIEST * median([update.tokens for update, _ in kept]) if kept else 0
    weights = [min(update.tokens, most_tokens) for update, _ in kept]
    factors = [options.clip * max(lower, min(middle, usual(update))) / norm if options.clip and norm else 1.0
               for update, norm in kept]
    return [CountedUpdate(update, norm, weight / sum(weights), min(1.0, factor) if factor else 1.0)
            for (update, norm), weight, factor in zip(kept, weights, factors, strict=True)], left_out


def norm_of(update: Update, start: Lora) -> float:
    """Returns the Frobenius norm of the change of all projections' weights; infinite if it is not finite."""
    total = 0.0
    with np.errstate(invalid="ignore", over="ignore"):
        for name, pair in start.items():
            total += squared_norm([term_of(update.pair(name)), term_of(update.began(pair), -1.0)])
            if not math.isfinite(total):
                return math.inf
    return math.sqrt(total)
