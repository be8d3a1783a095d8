"""Odds ratio preference optimization: the better answer is imitated, and its odds raised over those of the worse one,
without a reference model (Hong et al. 2024, arXiv 2403.07691).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from ..data import preferences
from ..data.packing import Batch, Example
from ..data.rows import RowParser
from ..options import option
from .answers import answers_of, log_sigmoid, pair_metrics, sigmoid
from .base import Objective, Signal, register

SUREST = -1e-6  # log p a token; the odds of a sure answer are infinite


@register
@dataclass(frozen=True)
class Orpo(Objective):
    """L = (1/N) sum over N pairs of -m_c - beta log s(log odds(m_c) - log odds(m_r)), with m the mean log p of an
    answer's tokens, log odds(m) = m - log(1 - e^m).

    The first term is of the answer's tokens, as in the paper; TRL has the prompt in it, too. TRL's rewards are beta m.
    """

    name: ClassVar[str] = "orpo"
    needs_logp: ClassVar[bool] = True
    rows: ClassVar[RowParser] = preferences
    defaults: ClassVar[Mapping[str, Any]] = {"lr": 5e-4}
    beta: float = option(0.1, "Weight of the odds ratio, compared with imitation, the paper's lambda.", low=0.0)

    def count(self, examples: Sequence[Example]) -> float:
        return len(examples) / 2

    def weights(self, logp: NDArray[np.float32], batch: Batch) -> Signal:
        answers = answers_of(logp, batch)
        mean = np.minimum(answers.logp / answers.sizes, SUREST)
        odds = mean - np.log(-np.expm1(mean))
        margin = odds[::2] - odds[1::2]
        rising = self.beta * np.repeat(sigmoid(-margin), 2) / -np.expm1(mean)  # by m: d odds/dm = 1 / (1 - e^m)
        rising[1::2] *= -1
        rising[::2] += 1
        loss = -mean[::2] - self.beta * log_sigmoid(margin)
        pairs = float(margin.size)
        metrics = {"nll_loss": (-float(mean[::2].sum()), pairs), "log_odds_chosen": (float(margin.sum()), pairs),
                   "log_odds_ratio": (float(log_sigmoid(margin).sum()), pairs)}  # TRL's names
        return Signal(answers.spread(rising / answers.sizes), float(loss.sum()),
                      pair_metrics(answers, self.beta * mean) | metrics)
