"""Reinforced self-training: answer, keep what is good enough, imitate it, again (ReST, Gulcehre et al. 2023)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray

from ..data.packing import Batch, Example
from ..options import option
from .base import Signal, register
from .drawn import Floats, Rewarded


@register
@dataclass(frozen=True)
class Rest(Rewarded):
    """L = -(1/N) sum_t log p_t over the N tokens of the answers that are kept: rejection sampling, then imitation; with
    `weigh` -(1/N) sum_t r log p_t, r the answer's reward.

    Of a prompt at most `keep` different answers count, so that easy prompts do not outweigh the others.
    """

    name: ClassVar[str] = "rest"
    steps_per_generation: int = option(0, "Steps whose prompts are answered together; 0: all prompts at once.", low=0)
    min_reward: float = option(1.0, "The least reward of an answer that is kept.")
    keep: int = option(2, "Different answers to a prompt that are kept at most, the best ones.", low=1)
    weigh: bool = option(False, "Weigh an answer that is kept by its reward.")

    def worth(self, rewards: Floats, repeated: NDArray[np.bool_], _epochs: float) -> Floats:
        found = np.zeros(rewards.shape, np.float32)
        for row, (of_prompt, again) in enumerate(zip(rewards, repeated, strict=True)):
            wanted = (of_prompt >= self.min_reward) & ~again
            best = [i for i in np.argsort(-of_prompt, kind="stable") if wanted[i]]
            found[row, best[:self.keep]] = of_prompt[best[:self.keep]] if self.weigh else 1.0
        return found

    def has_signal(self, example: Example) -> bool:
        return example.supervised > 0 and example.reward != 0

    def count(self, examples: Sequence[Example]) -> float:
        return float(sum(example.supervised for example in examples if example.reward))

    def weights(self, logp: Floats, batch: Batch) -> Signal:
        a = np.concatenate([np.full(example.supervised, example.reward, np.float32) for example in batch.examples])
        return Signal(a, -float(np.dot(logp.astype(np.float64), a.astype(np.float64))))
