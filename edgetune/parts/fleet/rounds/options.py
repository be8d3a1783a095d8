"""The options of a fleet's rounds that training does not have: name, type, default and help."""

from __future__ import annotations

from dataclasses import dataclass

from ....errors import UsageError
from ....options import check_options, option
from ..sums.ways import SVD, WAYS

USUAL_ROUNDS = 10  # until devices know what only others had rows of (docs/results/fleet.md)
MEAN = "mean"
TRIMMED = "trimmed-mean"
MEDIAN = "median"
PLAIN = "plain"
ADAM = "adam"
LOCAL = ("memory", "weights", "threads", "backend", "checkpoint_every", "prompt")
"""Options of training that a device decides for itself."""


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
