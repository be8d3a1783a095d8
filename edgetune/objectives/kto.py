"""Kahneman-Tversky optimization: answers that were found good become likelier than the reference model has them, bad
ones less likely, without pairs (Ethayarajh et al. 2024, arXiv 2402.01306).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from ..data import unpaired
from ..data.packing import Batch, Example
from ..data.rows import RowParser
from ..options import option
from .answers import answers_of, sigmoid
from .base import Objective, Signal, register


@register
@dataclass(frozen=True)
class Kto(Objective):
    """L = (1/N) sum over N answers: w_d (1 - s(beta (r - z))) of a good one, w_u (1 - s(beta (z - r))) of a bad one.

    r = log p(answer) - log p_ref(answer). z is the point of reference, an estimate of the KL divergence from the
    reference model, without a gradient: max(0, mean of r) over all answers of the step, or all that are measured. TRL
    estimates it, for a device's part of a step, from the same prompts with one another's answers, which costs as many
    forward passes again; equal estimates give equal losses.
    """

    name: ClassVar[str] = "kto"
    needs_logp: ClassVar[bool] = True
    needs_reference: ClassVar[bool] = True
    sees_step: ClassVar[bool] = True
    rows: ClassVar[RowParser] = unpaired
    defaults: ClassVar[Mapping[str, Any]] = {"lr": 5e-5}
    beta: float = option(0.1, "How strongly the model is held to the reference.", low=1e-6, high=1e6)
    desirable_weight: float = option(1.0, "Weight of good answers.", low=0.0)
    undesirable_weight: float = option(1.0, "Weight of bad answers; good and bad should weigh about the same in all.",
                                       low=0.0)

    def count(self, examples: Sequence[Example]) -> float:
        return len(examples)

    def weights(self, logp: NDArray[np.float32], batch: Batch) -> Signal:
        answers = answers_of(logp, batch)
        ratio = answers.ratio
        kl = max(0.0, float(ratio.mean()))
        good = answers.rewards > 0
        sign = np.where(good, 1.0, -1.0)
        weight = np.where(good, self.desirable_weight, self.undesirable_weight)
        value = sigmoid(self.beta * sign * (ratio - kl))
        slopes = weight * sign * self.beta * value * (1 - value)
        metrics = {"kl": (kl * ratio.size, float(ratio.size))}
        for name, which in (("chosen", good), ("rejected", ~good)):
            metrics[f"rewards/{name}"] = (float(self.beta * ratio[which].sum()), float(which.sum()))
            metrics[f"logps/{name}"] = (float(answers.logp[which].sum()), float(which.sum()))
        losses = weight * (1 - value)
        return Signal(answers.spread(slopes), float(losses.sum()), metrics, losses=losses)
