"""Learning from rewards of the model's own answers: what all objectives that do so share.

The rows are prompts. Every `steps_per_generation` steps the prompts of these steps are answered, `num_generations`
times each, by the adapter as it is then, and each answer gets a reward. From the rewards of the answers to a prompt the
objective makes what each is worth (`advantages`), which is the answer's `Example.reward` from then on.

Options have TRL's names and, unless their help says another, its meaning. Letters: P prompts, G answers to each.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, TypeVar

import numpy as np
from numpy.typing import NDArray

from ..data import prompts
from ..data.lengths import Lengths, Unit
from ..data.packing import Example
from ..data.rows import RowParser
from ..errors import UsageError
from ..options import option
from .base import Objective

Floats = NDArray[np.float32]
T = TypeVar("T", bound="Rewarded")


@dataclass(frozen=True)
class Rewarded(Objective):
    """grader and reward name what rewards an answer; who trains makes a function of it."""

    rows: ClassVar[RowParser] = prompts
    keeps_groups: ClassVar[bool] = True  # whether the answers to a prompt are compared with one another
    defaults: ClassVar[Mapping[str, Any]] = {"lr": 1e-4, "schedule": "constant"}

    grader: str = option("", "What rewards an answer: a file with a grader as JSON, or the JSON itself.")
    reward: str = option("", "A Python function that rewards answers, as module:function, with TRL's signature.")
    unsafe_python: bool = option(False, "Run python graders also where the kernel cannot confine them.")
    num_generations: int = option(4, "Answers to each prompt.", low=2, high=1024)
    max_completion_length: int = option(128, "Tokens of an answer at most.", low=1)
    temperature: float = option(1.0, "Temperature at which answers are drawn.", low=0.01, high=10.0)
    top_p: float = option(1.0, "Draw among the likeliest tokens that make up this probability.", low=0.0, high=1.0)
    top_k: int = option(0, "Draw among this number of likeliest tokens; 0: among all.", low=0)
    min_p: float = option(0.0, "Leave out tokens less likely than this share of the likeliest.", low=0.0, high=1.0)
    num_iterations: int = option(1, "How often all answers are learned from before others are drawn.", low=1, high=100)
    steps_per_generation: int = option(1, "Steps whose prompts are answered together; 0: all prompts at once.", low=0)
    mask_truncated_completions: bool = option(False, "Learn nothing from answers that were cut at their most tokens.")
    overlong_tokens: int = option(0, "Lower the reward of answers that come this close to their most tokens, down by 1 "
                                  "for one that is cut (DAPO's soft penalty); 0: never.", low=0)

    @abstractmethod
    def advantages(self, rewards: Floats, repeated: NDArray[np.bool_]) -> Floats:
        """What each answer is worth, [P, G], by all rewards [P, G]. repeated [P, G]: whether an answer is the same as
        an earlier one to its prompt.
        """

    @abstractmethod
    def has_signal(self, example: Example) -> bool:
        """Whether anything is learned from an answer whose advantage is known."""

    @property
    def imitated_epochs(self) -> float:
        """Passes over the rows, before the first answers, that imitate their completions."""
        return 0.0

    @property
    def redraws(self) -> bool:
        """Whether another prompt is answered in place of one whose answers all have the same reward."""
        return False

    def penalized(self, rewards: Floats, tokens: NDArray[np.int64]) -> Floats:
        """Rewards less the penalty for long answers (Yu et al. 2025, equation 13), of any shape."""
        if not self.overlong_tokens:
            return rewards
        begin = self.max_completion_length - self.overlong_tokens
        return np.asarray(rewards - np.clip((tokens - begin) / self.overlong_tokens, 0.0, 1.0), np.float32)

    def answer_tokens(self, prompt: int, max_length: int) -> int:
        """The most tokens of an answer to a prompt of `prompt` tokens, in a document of max_length."""
        return min(self.max_completion_length, max_length - prompt)

    def lengths(self, *parts: Sequence[Example], max_length: int, share: bool) -> Lengths:
        """Of the answers to the prompts, each at its greatest length."""
        g = self.num_generations
        units = []
        for example in (example for part in parts for example in part):
            n = example.tokens.size
            c = self.answer_tokens(n, max_length)
            units.append(Unit(n + c, g * (n + c), n + g * c if share else g * (n + c), n if share else 0, g * c))
        return Lengths(tuple(units), prompt=max((example.tokens.size for part in parts for example in part), default=0))

    def check(self: T) -> T:
        super().check()
        if self.grader and self.reward:
            raise UsageError("grader and reward are both given", "leave one of them out")
        if self.overlong_tokens > self.max_completion_length:
            raise UsageError(f"overlong-tokens is {self.overlong_tokens}, and an answer has at most "
                             f"{self.max_completion_length}", "lower it")
        return self
