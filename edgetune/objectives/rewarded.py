"""Learning from rewards of the model's own answers: the common base of objectives that do so.

The objective turns the rewards of the answers to a prompt into the worth of each (`worth`), which is the answer's
`Example.reward` from then on. Options have TRL's names and, unless their help says another, its meaning.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, TypeVar

import numpy as np
from numpy.typing import NDArray

from ..data import prompts
from ..data.rows import RowParser
from ..errors import UsageError
from ..options import option
from .drawn import Drawn, Floats

T = TypeVar("T", bound="Rewarded")


@dataclass(frozen=True)
class Rewarded(Drawn):
    """grader and reward name what rewards an answer; who trains makes a function of it."""

    rows: ClassVar[RowParser] = prompts
    defaults: ClassVar[Mapping[str, Any]] = {"lr": 1e-4, "schedule": "constant"}

    grader: str = option("", "What rewards an answer: a file with a grader as JSON, or the JSON itself.")
    reward: str = option("", "A Python function that rewards answers, as module:function, with TRL's signature.")
    unsafe_python: bool = option(False, "Run python graders also where the kernel cannot confine them.")
    overlong_tokens: int = option(0, "Lower the reward of answers that come this close to their most tokens, down by 1 "
                                  "for one that is cut (DAPO's soft penalty); 0: never.", low=0)

    def penalized(self, rewards: Floats, tokens: NDArray[np.int64]) -> Floats:
        """Rewards less the penalty for long answers (Yu et al. 2025, equation 13), of any shape."""
        if not self.overlong_tokens:
            return rewards
        begin = self.max_completion_length - self.overlong_tokens
        return np.asarray(rewards - np.clip((tokens - begin) / self.overlong_tokens, 0.0, 1.0), np.float32)

    def check(self: T) -> T:
        super().check()
        if self.grader and self.reward:
            raise UsageError("grader and reward are both given", "leave one of them out")
        if self.overlong_tokens > self.max_completion_length:
            raise UsageError(f"overlong-tokens is {self.overlong_tokens}, and an answer has at most "
                             f"{self.max_completion_length}", "lower it")
        return self
