"""Group relative policy optimization (Shao et al. 2024), with the losses of DAPO and Dr. GRPO."""

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
from .policy import LEAST_STD, PolicyGradient, centred


@register
@dataclass(frozen=True)
class Grpo(PolicyGradient):
    """A_i = (R_i - mean) / std over the answers to a prompt.

    loss_type: "grpo" takes the mean over the tokens of each answer, then over the answers; "dapo" (Yu et al. 2025) over
    all tokens; "dr_grpo" (Liu et al. 2025) divides the sum over tokens by the number of answers and their most tokens.
    """

    name: ClassVar[str] = "grpo"
    method: ClassVar[str] = "reinforcement"
    loss_type: str = option("dapo", "What the loss is a mean of: grpo, of the means of the answers; dapo, of all "
                            "tokens; dr_grpo, of the answers as if each had its most tokens.",
                            choices=("grpo", "dapo", "dr_grpo"))
    scale_rewards: str = option("group", "By whose standard deviation advantages are divided: that of the answers to "
                                "the same prompt, of all answers in the step, or of none.",
                                choices=("group", "batch", "none"))

    def worth(self, rewards: Floats, _repeated: NDArray[np.bool_], _epochs: float) -> Floats:
        found = centred(rewards)
        if self.scale_rewards == "none":
            return found
        std = rewards.std(1, ddof=1, keepdims=True) if self.scale_rewards == "group" else rewards.std(ddof=1)
        return np.asarray(found / (std + LEAST_STD), np.float32)

    def count(self, examples: Sequence[Example]) -> float:
        return float(sum(example.supervised for example in examples) if self.loss_type == "dapo" else len(examples))

    def share_of(self, example: Example) -> float:
        if self.loss_type == "dapo":
            return 1.0
        return 1 / (example.supervised if self.loss_type == "grpo" else self.max_completion_length)
