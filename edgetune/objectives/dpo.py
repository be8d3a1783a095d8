"""Direct preference optimization: the better of two answers becomes likelier than the worse one, relative to the
reference model, which is the base or the adapter that training starts from (Rafailov et al. 2023, arXiv 2305.18290).
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
from ..errors import UsageError
from ..options import option
from .answers import Floats, answers_of, log_sigmoid, pair_metrics, sigmoid
from .base import Objective, Signal, register

BY_LENGTH = ("ipo", "sigmoid_norm")  # losses of ratios a token


@register
@dataclass(frozen=True)
class Dpo(Objective):
    """L = (1/N) sum over N pairs of f(r_c - r_r), r = log p(answer) - log p_ref(answer) summed over tokens; f(d):

    sigmoid       -(1 - e) log s(beta d) - e log s(-beta d), e: label_smoothing (Mitchell 2023)
    sigmoid_norm  the same, with r a token
    robust        (-(1 - e) log s(beta d) + e log s(-beta d)) / (1 - 2 e) (Chowdhury et al. 2024, arXiv 2403.00409)
    hinge         max(0, 1 - beta d) (Zhao et al. 2023, arXiv 2305.10425)
    ipo           (d - 1 / (2 beta))^2, with r a token (Azar et al. 2023, arXiv 2310.12036)

    and sft_weight times the mean of -log p over the chosen answer's tokens (Pang et al. 2024, arXiv 2404.19733).
    """

    name: ClassVar[str] = "dpo"
    needs_logp: ClassVar[bool] = True
    needs_reference: ClassVar[bool] = True
    rows: ClassVar[RowParser] = preferences
    defaults: ClassVar[Mapping[str, Any]] = {"lr": 2e-4}
    beta: float = option(0.1, "How strongly the model is held to the reference; of ipo its tau.", low=1e-6, high=1e6)
    loss_type: str = option("sigmoid", "What a pair's loss is; sigmoid_norm and ipo count log p a token, the others "
                            "that of whole answers.", choices=("sigmoid", "hinge", "ipo", "robust", "sigmoid_norm"))
    label_smoothing: float = option(0.0, "Share of the pairs that may be the wrong way round, below 0.5; for sigmoid, "
                                    "sigmoid_norm and robust.", low=0.0, high=0.499)
    sft_weight: float = option(0.0, "Weight of imitating the chosen answer, added to preferring it.", low=0.0)

    def check(self) -> Dpo:
        super().check()
        if self.label_smoothing and self.loss_type in ("hinge", "ipo"):
            raise UsageError(f"label-smoothing is {self.label_smoothing:g}, and the loss {self.loss_type} has none",
                             "leave it out, or choose the loss robust")
        return self

    def count(self, examples: Sequence[Example]) -> float:
        return len(examples) / 2

    def weights(self, logp: NDArray[np.float32], batch: Batch) -> Signal:
        answers = answers_of(logp, batch)
        scale = 1 / answers.sizes if self.loss_type in BY_LENGTH else np.ones(len(answers.parts))
        scores = answers.ratio * scale
        losses, slopes = self._losses(scores[::2] - scores[1::2])
        of_answers = np.repeat(slopes, 2) * scale
        of_answers[1::2] *= -1
        imitated = -answers.logp[::2] / answers.sizes[::2]
        of_answers[::2] += self.sft_weight / answers.sizes[::2]
        loss = float(losses.sum() + self.sft_weight * imitated.sum())
        return Signal(answers.spread(of_answers), loss, pair_metrics(answers, self.beta * answers.ratio))

    def _losses(self, delta: Floats) -> tuple[Floats, Floats]:
        """(f, -df/ddelta) of each pair."""
        if self.loss_type == "ipo":
            missing = 1 / (2 * self.beta) - delta
            return missing**2, 2 * missing
        margin = self.beta * delta
        if self.loss_type == "hinge":
            return np.maximum(0, 1 - margin), self.beta * (margin < 1).astype(np.float64)
        e = self.label_smoothing
        if self.loss_type == "robust":
            loss = (-(1 - e) * log_sigmoid(margin) + e * log_sigmoid(-margin)) / (1 - 2 * e)
            return loss, self.beta * ((1 - e) * sigmoid(-margin) + e * sigmoid(margin)) / (1 - 2 * e)
        loss = -(1 - e) * log_sigmoid(margin) - e * log_sigmoid(-margin)
        return loss, self.beta * ((1 - e) * sigmoid(-margin) - e * sigmoid(margin))
