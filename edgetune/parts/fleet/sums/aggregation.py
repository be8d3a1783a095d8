"""The next adapter from the updates of a round: deterministic, in numpy, one projection in memory at a time."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ....adapters.lora import Lora, Pair
from ....errors import EdgetuneError
from ..rounds.options import ADAM, MEAN, MEDIAN, TRIMMED, RoundOptions
from .low_rank_sums import best_of_rank, missed_by_averages, squared_norm, term_of
from .screening import CountedUpdate, LeftOut, Update, screened, unknown
from .server_adam import Arrays, ServerAdam
from .ways import A, B, half_of

Floats = NDArray[np.float64]
Step = Callable[[str, Floats], Floats]
Average = Callable[[Floats, Sequence[float], float], Floats]


@dataclass(frozen=True, eq=False)
class Aggregate:
    """The next adapter, and what became of the updates.

    missed: what averaging A and B apart would lose, of the norm of the round's change; NaN if ranks differ. cut:
    what the rank loses of it. moments: of the server, for the next round.
    """

    pairs: Lora
    counted: list[CountedUpdate]
    left_out: list[LeftOut]
    missed: float
    cut: float
    moments: Arrays


def aggregate(updates: Sequence[Update], start: Lora, options: RoundOptions, number: int,
              moments: Mapping[str, NDArray[np.float32]], refused: Sequence[str] = (),
              usual: Callable[[Any], float] = unknown) -> Aggregate:
    """Returns the aggregate of round `number`, which began from `start`. moments: of the server, of the rounds before.
    refused: what was left out before, for the error. usual: as of screened.

    The updates are summed in the order of their devices' names, so that their own order decides nothing. Raises
    EdgetuneError if fewer updates count than the quorum.
    """
    counted, left_out = screened(sorted(updates, key=lambda update: update.device), start, options, usual)
    if len(counted) < options.quorum:
        reasons = [*refused, *(f"{one.device}: {one.reason}" for one in left_out)]
        why = f" (left out: {'; '.join(reasons)})" if reasons else ""
        raise EdgetuneError(f"{len(counted)} answers count, the quorum of the round is {options.quorum}{why}",
                            "wait for more devices")
    half = half_of(options.aggregation, number)
    server = ServerAdam(options.server_rate, moments)
    step: Step = server.step if options.server == ADAM else lambda _, change: options.server_rate * change
    sums = partial(_of_products, options.server_rate) if half == A + B else partial(_of_half, half, options, step)
    pairs: Lora = {}
    missed = cut = change = 0.0
    for name, pair in start.items():
        sent = [one.update.pair(name) for one in counted]
        pairs[name], lost = sums(name, pair, counted, sent)
        cut += lost
        change += squared_norm([term_of(pairs[name]), term_of(pair, -1.0)])
        if half == A + B:  # else all have one A, or one B, of which averages miss nothing
            missed += missed_by_averages(sent, [one.share for one in counted])
    return Aggregate(pairs, counted, left_out, _share(missed, change), _share(cut, change), server.moments)


def _of_products(rate: float, _: str, start: Pair, counted: Sequence[CountedUpdate],
                 sent: Sequence[Pair]) -> tuple[Pair, float]:
    """Returns the best pair of the start's rank for start + rate * sum of p_i c_i (B_i A_i - began_i), and what the
    rank loses.

    A device of the task's rank began at the start, so that all of these are one term.
    """
    terms = []
    left = 1.0
    for one, pair in zip(counted, sent, strict=True):
        weight = rate * one.share * one.scale
        terms.append(term_of(pair, weight))
        began = one.update.began(start)
        if began is start:
            left -= weight
        else:
            terms.append(term_of(began, -weight))
    return best_of_rank([term_of(start, left), *terms], start.rank, start.scale)


def _of_half(half: str, options: RoundOptions, step: Step, name: str, start: Pair,
             counted: Sequence[CountedUpdate], sent: Sequence[Pair]) -> tuple[Pair, float]:
    """Returns the start with one half moved by the average of the devices' changes; the other half is the same on all.
    """
    before = getattr(start, half).astype(np.float64)
    changes = np.stack([one.scale * (getattr(pair, half) - before) for one, pair in zip(counted, sent, strict=True)])
    average = AVERAGES[options.average](changes, [one.share for one in counted], options.trim)
    after = (before + step(f"{name}.{half}", average)).astype(np.float32)
    return Pair(start.a if half == B else after, start.b if half == A else after, start.scale), 0.0


def _share(part: float, whole: float) -> float:
    """Returns the ratio of two norms, from their squares."""
    return math.sqrt(part / whole) if whole else 0.0


# ---- averages: the weighted mean, or one that a few wrong devices do not move ---------------------------------------
# Trimmed mean and median are of each value, and count every device once (Yin et al. 2018, arXiv:1803.01498).


def weighted_mean(values: Floats, weights: Sequence[float], trim: float) -> Floats:  # noqa: ARG001
    """Returns the sum over devices of weight times value. values [devices, ...]; weights sum to 1."""
    return np.tensordot(np.asarray(weights), values, axes=1)


def trimmed_mean(values: Floats, weights: Sequence[float], trim: float) -> Floats:  # noqa: ARG001
    """Returns the mean without the share `trim` of the devices at each end, rounded down; at least one device is left.
    """
    count = len(values)
    cut = min(int(trim * count), (count - 1) // 2)
    return np.asarray(np.sort(values, axis=0)[cut:count - cut].mean(axis=0))


def median(values: Floats, weights: Sequence[float], trim: float) -> Floats:  # noqa: ARG001
    """Returns the median of each value over the devices."""
    return np.asarray(np.median(values, axis=0))


AVERAGES: dict[str, Average] = {MEAN: weighted_mean, TRIMMED: trimmed_mean, MEDIAN: median}
