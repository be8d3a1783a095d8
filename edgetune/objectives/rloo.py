"""REINFORCE with the other answers to the same prompt as the baseline (RLOO, Ahmadian et al. 2024)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray

from ..options import option
from .base import register
from .drawn import Floats
from .policy import LEAST_STD, Doubles, PolicyGradient, Sums, left_out


@register
@dataclass(frozen=True)
class Rloo(PolicyGradient):
    """A_i = R_i - the mean reward of the other answers. The ratio is that of whole answers, L the mean over answers.

    The KL divergence is a term of the loss, by k3; TRL subtracts it from the reward.
    """

    name: ClassVar[str] = "rloo"
    normalize_advantages: bool = option(False, "Subtract the mean of a step's advantages, and divide by their standard "
                                        "deviation.")

    def worth(self, rewards: Floats, _repeated: NDArray[np.bool_], _epochs: float) -> Floats:
        found = left_out(rewards)
        if self.normalize_advantages:
            found = (found - found.mean()) / (found.std(ddof=1) + LEAST_STD)
        return np.asarray(found, np.float32)

    def surrogate(self, log_ratio: Doubles, advantage: float | Doubles, sums: Sums) -> tuple[Doubles, Doubles]:
        n = log_ratio.size
        value, slope = super().surrogate(log_ratio.sum(keepdims=True), advantage, sums)
        return np.repeat(value / n, n), np.repeat(slope, n)
