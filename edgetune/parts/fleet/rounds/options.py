"""The options of a fleet's rounds that training does not have, and what they say of a round: its halves and its noise.

The way to sum decides which half of the adapter a round trains. With one half frozen at the fleet's value the sum of
the products is the product of the sum, so nothing is lost: frozen-a is FFA-LoRA (Sun et al. 2024, arXiv:2403.12313),
rolora takes turns (Chen et al. 2025, arXiv:2502.01755). svd trains both, sums the products and keeps the best of the
rank, as FlexLoRA (Bai et al. 2024, arXiv:2402.11505).
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from ....errors import UsageError
from ....options import check_options, option

A = "a"
B = "b"
SVD = "svd"
FROZEN_A = "frozen-a"
ROLORA = "rolora"
WAYS = {SVD: (A + B,), FROZEN_A: (B,), ROLORA: (B, A)}
"""The halves that are trained in round 1, 2 and so on, from the first again after the last."""

FAMILIES = {A: "lora-fb", B: "lora-fa", A + B: "lora"}
"""The adapter family that trains them."""
USUAL_ROUNDS = 10  # until devices know what only others had rows of (docs/results/fleet.md)
MEAN = "mean"
TRIMMED = "trimmed-mean"
MEDIAN = "median"
PLAIN = "plain"
ADAM = "adam"
LOCAL = ("memory", "weights", "threads", "backend", "checkpoint_every", "prompt")
"""Options of training that a device decides for itself."""


def half_of(way: str, number: int) -> str:
    """Returns the halves of the pairs that round 1, 2, ... trains."""
    turns = WAYS[way]
    return turns[(number - 1) % len(turns)]


@dataclass(frozen=True)
class RoundOptions:
    """The rules by which updates of devices become the next adapter. A task carries them from round to round."""

    aggregation: str = option(SVD, "What devices train and how it is summed: svd: A and B, their products summed, the "
                              "best of the rank kept; frozen-a: only B, summed exactly; rolora: B and A in turn, "
                              "summed exactly.", choices=tuple(WAYS), common=True, group="The fleet")
    average: str = option(MEAN, "Average over devices: mean, by supervised tokens; trimmed-mean or median, of each "
                          "value, which a few wrong devices do not move.", choices=(MEAN, TRIMMED, MEDIAN), common=True)
    trim: float = option(0.1, "With trimmed-mean: share of the devices that is left out at each end, such as 0.1 or "
                         "10%.", low=0.0, high=0.49, share=True)
    clip: float = option(2.0, "Scale a larger update down to this many times the median norm; 0: never.", low=0.0)
    refuse: float = option(10.0, "Leave out an update of more than this many times the median norm; 0: none.", low=0.0)
    quorum: int = option(1, "Answers without which a round does not count.", low=1, high=1_000_000, common=True)
    server: str = option(PLAIN, "Step of the aggregate: plain: the average itself; adam: FedAdam, with moments over "
                         "rounds.", choices=(PLAIN, ADAM))
    server_rate: float = option(1.0, "With plain: factor of the average. With adam: its learning rate, such as 1e-3.",
                                low=0.0)
    planned_rounds: int = option(0, "Rounds over which the learning rate falls to a twentieth; 0: it stays.", low=0,
                                 high=1_000_000)
    noise: float = option(0.0, "Noise that each device adds to its answer, in times of --noise-norm; 0: none.", low=0.0)
    noise_norm: float = option(1.0, "With --noise: the norm to which an answer is scaled down before.", low=1e-6)

    def check(self) -> RoundOptions:
        """Returns self; raises UsageError for the first option out of its range, or two that exclude each other."""
        check_options(self)
        for name, value, plain in (("average", self.average, MEAN), ("server", self.server, PLAIN)):
            if self.aggregation == SVD and value != plain:
                raise UsageError(f"{name} is {value} with aggregation {SVD}, which sums products and has no values to "
                                 "take it of", f"take --{name} {plain}, or --aggregation frozen-a or rolora")
        if self.aggregation == SVD and self.noise:
            raise UsageError(f"noise is {self.noise:g} with aggregation {SVD}, in whose products it would multiply",
                             "take --aggregation frozen-a or rolora")
        if 0.0 < self.refuse < self.clip:
            raise UsageError(f"refuse is {self.refuse:g}, less than clip, {self.clip:g}", "raise --refuse")
        return self


@dataclass(frozen=True)
class Noise:
    """most: the L2 norm of all values of an answer; larger ones are scaled down. multiplier: of `most`, which is the
    standard deviation of the noise on each value.
    """

    most: float
    multiplier: float

    @property
    def deviation(self) -> float:
        """Returns the standard deviation of the noise on each value."""
        return self.most * self.multiplier

    def check(self) -> Noise:
        """Returns self; raises UsageError for numbers that are not above 0."""
        if not (0.0 < self.most < math.inf and 0.0 < self.multiplier < math.inf):
            raise UsageError(f"noise is {self.multiplier:g} with the norm {self.most:g}", "give both above 0")
        return self
