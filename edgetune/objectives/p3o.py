"""Pairwise proximal policy optimization (Wu et al. 2023, arXiv 2310.00212): two answers to a prompt, compared."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray

from ..data.packing import Example
from ..options import option
from .base import register
from .drawn import Floats
from .policy import PolicyGradient, centred


@register
@dataclass(frozen=True)
class P3o(PolicyGradient):
    """L = -(1/P) sum over pairs (R_1 - R_2)/2 (log pi(y_1) - log pi(y_2)), with one update for each pair of answers.

    There the paper's ratios are 1, and nothing is clipped. It is invariant to what is added to the rewards of a prompt.
    """

    name: ClassVar[str] = "p3o"
    num_generations: int = option(2, "Answers to each prompt: two.", low=2, high=2)
    num_iterations: int = option(1, "How often all answers are learned from: once.", low=1, high=1)

    def worth(self, rewards: Floats, _repeated: NDArray[np.bool_], _epochs: float) -> Floats:
        return centred(rewards)

    def count(self, examples: Sequence[Example]) -> float:
        return len(examples) / 2
