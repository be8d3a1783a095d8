"""Rank responses to align with human feedback: of several answers with rewards the better ones become likelier than the
worse ones, and the best one is imitated (Yuan et al. 2023, arXiv 2304.05302).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from ..data import ranked
from ..data.packing import Batch, Example, grouped_indices
from ..data.rows import RowParser
from ..options import option
from .answers import answers_of
from .base import Objective, Signal, register


@register
@dataclass(frozen=True)
class Rrhf(Objective):
    """L = (1/N) sum over N prompts of sum over pairs with reward_i < reward_j of max(0, s_i - s_j), minus sft_weight
    times the log p of the best answer, summed over its tokens; s = log p(answer) / tokens^length_penalty.

    Answers with the same reward are not compared; of several best ones the first is imitated.
    """

    name: ClassVar[str] = "rrhf"
    needs_logp: ClassVar[bool] = True
    rows: ClassVar[RowParser] = ranked
    defaults: ClassVar[Mapping[str, Any]] = {"lr": 5e-4}
    length_penalty: float = option(1.0, "Power of its length by which an answer's log p is divided.", low=0.0, high=4.0)
    sft_weight: float = option(1.0, "Weight of imitating the best answer.", low=0.0)

    def count(self, examples: Sequence[Example]) -> float:
        return len(grouped_indices(examples))

    def weights(self, logp: NDArray[np.float32], batch: Batch) -> Signal:
        answers = answers_of(logp, batch)
        scale = answers.sizes**-self.length_penalty
        scores = answers.logp * scale
        slopes = np.zeros(scores.size)
        ranking = 0.0
        imitated = 0.0
        right = 0
        compared = 0
        for indices in grouped_indices(batch.examples):
            group = np.array(indices)
            rewards = answers.rewards[group]
            is_worse = rewards[:, None] < rewards[None, :]  # [k, k]: the row's answer than the column's
            excess = scores[group][:, None] - scores[group][None, :]
            violated = is_worse & (excess > 0)
            ranking += float(excess[violated].sum())
            slopes[group] += (violated.sum(0) - violated.sum(1)) * scale[group]
            best = group[int(rewards.argmax())]
            slopes[best] += self.sft_weight
            imitated -= float(answers.logp[best])
            right += int(is_worse.sum() - violated.sum())
            compared += int(is_worse.sum())
        groups = self.count(batch.examples)
        metrics = {"rank_loss": (ranking, groups), "nll_loss": (imitated, groups),
                   "rewards/accuracies": (float(right), float(compared))}
        return Signal(answers.spread(slopes), ranking + self.sft_weight * imitated, metrics)
