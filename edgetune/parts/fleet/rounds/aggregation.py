"""The next adapter from the updates of a round: deterministic, in numpy, one projection in memory at a time.

Which updates count, and how much, is decided by their norms and by the tokens that they learned. The norm of an update
is that of the change of the model's weights, over all projections. One device whose rate was too high, or that lies,
would move the sum as far as it likes; after this it moves it at most as far as twice the median.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from statistics import median, median_low
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from ....adapters.lora import Lora, Pair
from ....errors import EdgetuneError
from .low_rank_sums import best_of_rank, missed_by_averages, squared_norm, term_of
from .options import ADAM, MEAN, MEDIAN, A, B, RoundOptions, half_of

HEAVIEST = 10  # times the median of the tokens that devices say they learned: none counts for more
BETA1 = 0.9
BETA2 = 0.99
TAU = 1e-3

Arrays = dict[str, NDArray[np.float32]]
Floats = NDArray[np.float64]
Step = Callable[[str, Floats], Floats]


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


class ServerAdam:
    """FedAdam (Reddi et al. 2021, arXiv:2003.00295, algorithm 2): Adam on the server, whose gradient is the average
    change. It evens out rounds in which few devices answer, and values that only few devices move. As in the paper,
    moments begin at 0 and tau squared, and are not corrected for that. moments: by the name of an array.
    """

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
    average = average_of(changes, [one.share for one in counted], options)
    after = (before + step(f"{name}.{half}", average)).astype(np.float32)
    return Pair(start.a if half == B else after, start.b if half == A else after, start.scale), 0.0


def _share(part: float, whole: float) -> float:
    """Returns the ratio of two norms, from their squares."""
    return math.sqrt(part / whole) if whole else 0.0


def average_of(values: Floats, weights: Sequence[float], options: RoundOptions) -> Floats:
    """Returns the average over devices of values [devices, ...]: their mean by weights, which sum to 1; or of each
    value the median, or the mean without the share `trim` of the devices at each end, rounded down, of which at least
    one is left. These two count every device once (Yin et al. 2018, arXiv:1803.01498), and few do not move them.
    """
    if options.average == MEAN:
        return np.tensordot(np.asarray(weights), values, axes=1)
    if options.average == MEDIAN:
        return np.asarray(np.median(values, axis=0))
    cut = min(int(options.trim * len(values)), (len(values) - 1) // 2)
    return np.asarray(np.sort(values, axis=0)[cut:len(values) - cut].mean(axis=0))
