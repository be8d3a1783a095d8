"""Reinforced fine-tuning: imitate the rows' answers first, then learn from rewards (ReFT, Luong et al. 2024)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from ..data.packing import Batch, Example
from ..options import option
from .base import Signal, register
from .drawn import Floats
from .grpo import Grpo


@register
@dataclass(frozen=True)
class Reft(Grpo):
    """`warmup_epochs` passes with L = -(1/N) sum_t log p_t over the rows' completions, then Dr. GRPO on their prompts.

    The paper has PPO with a value network in the second part, which takes a second head and its optimizer.
    """

    name: ClassVar[str] = "reft"
    warmup_epochs: float = option(2.0, "Passes over the rows that imitate their completions, before answers are "
                                  "rewarded.", low=0.0, high=1000.0)
    loss_type: str = option("dr_grpo", "What the loss is a mean of: grpo, of the means of the answers; dapo, of all "
                            "tokens; dr_grpo, of the answers as if each had its most tokens.",
                            choices=("grpo", "dapo", "dr_grpo"))
    scale_rewards: str = option("none", "By whose standard deviation advantages are divided: that of the answers to "
                                "the same prompt, of all answers in the step, or of none.",
                                choices=("group", "batch", "none"))

    @property
    def imitated_epochs(self) -> float:
        return self.warmup_epochs

    def count(self, examples: Sequence[Example]) -> float:
        if _imitates(examples):
            return float(sum(example.supervised for example in examples))
        return super().count(examples)

    def weights(self, logp: Floats, batch: Batch) -> Signal:
        if _imitates(batch.examples):
            return Signal(np.ones(logp.size, np.float32), -float(logp.sum(dtype=np.float64)))
        return super().weights(logp, batch)


def _imitates(examples: Sequence[Example]) -> bool:
    """Whether these are the rows' completions: answers of the model are in groups."""
    return not any(example.group for example in examples)
