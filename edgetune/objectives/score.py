"""Self-correction by rewards of two turns (SCoRe, Kumar et al. 2024, arXiv 2409.12917): the model answers, is asked to
look at its answer again, and answers a second time; both answers are its own, and both are rewarded.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray

from ..data import again
from ..data.rows import RowParser
from ..options import option
from .base import register
from .drawn import Again, Floats
from .policy import PolicyGradient, left_out


@register
@dataclass(frozen=True)
class Score(PolicyGradient):
    """L of policy.py, the mean over the N answers of both turns of the sum over their tokens, with the other answers of
    the same turn to the same prompt as the baseline of each, A_i = R_i - mean of the others' R.

    First stage: R = 0 of first answers, whose KL weighs beta + first_turn_beta, and R = r2 of second ones: the second
    answer improves while the first stays. Then R = r1 of first answers and R = r2 + progress_weight (r2 - r1) of second
    ones, so that answering worse at first does not pay. The KL is k3, a term of the loss; each answer is credited with
    its own R alone.
    """

    name: ClassVar[str] = "score"
    rows: ClassVar[RowParser] = again
    again: ClassVar[Again | None] = again
    keeps_groups: ClassVar[bool] = False
    beta: float = option(0.01, "Weight of the KL divergence to the model that training started from.", low=0.0)
    first_turn_beta: float = option(0.1, "What is added to it for first answers in the first stage.", low=0.0)
    progress_weight: float = option(10.0, "Weight of how much more reward the second answer has than the first.",
                                    low=0.0)
    first_stage_epochs: float = option(1.0, "Passes over the prompts in which only second answers are rewarded, and "
                                       "first ones are held to what training started from.", low=0.0, high=1000.0)

    @property
    def needs_reference(self) -> bool:  # type: ignore[override]
        return self.beta > 0 or self.first_turn_beta > 0

    @property
    def needs_logp(self) -> bool:  # type: ignore[override]
        return self.needs_reference or self.num_iterations > 1

    def worth(self, rewards: Floats, _repeated: NDArray[np.bool_], epochs: float) -> Floats:
        first, second = np.split(rewards, 2, axis=1)
        if epochs < self.first_stage_epochs:
            return np.concatenate([np.zeros_like(first), left_out(second)], axis=1)
        shaped = second + np.float32(self.progress_weight) * (second - first)
        return np.concatenate([left_out(first), left_out(shaped)], axis=1)

    def held(self, shape: tuple[int, ...], epochs: float) -> Floats:
        found = np.zeros(shape, np.float32)
        if epochs < self.first_stage_epochs:
            found[:, :shape[1] // 2] = self.first_turn_beta
        return found
