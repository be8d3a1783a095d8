"""Learning from the model's own answers: the common base of objectives that draw them.

The rows are prompts. Every `steps_per_generation` steps the current adapter answers the prompts of these steps,
`num_generations` times each, and the steps learn from these answers. Options have TRL's names and, unless their help
says another, its meaning. Letters: P prompts, G answers to each, in all turns together.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Protocol, TypeVar

import numpy as np
from numpy.typing import NDArray

from ..data import prompts
from ..data.around import Instruction
from ..data.lengths import VALUE, Lengths, Unit
from ..data.packing import Example
from ..data.rows import RowParser
from ..errors import DataError, UsageError
from ..options import option
from .base import Objective

if TYPE_CHECKING:
    from ..llamacpp.tokenizer import Tokenizer

AT_ONCE = 8  # prompts whose answers the teacher has read, in a step by default
Floats = NDArray[np.float32]
Tokens = NDArray[np.int32]
T = TypeVar("T", bound="Rewarded")


class Again(Protocol):
    """A module that reads the rows of an objective with two turns, and asks for the second answer."""

    def second_prompt(self, item: str, answer: str, tokenizer: Tokenizer, system: Instruction, /) -> Tokens:
        """The tokens after which the second answer is drawn. item: the row as JSON; answer: the first one."""


@dataclass(frozen=True)
class Drawn(Objective):
    """keeps_groups: whether the answers to a prompt are compared with one another while they are learned from.
    compares_updates: whether later updates with the same answers need the log p and values that these had in the first.
    again: the module that asks for a second answer; None: the model answers once.
    """

    source: ClassVar[str] = "answers"
    keeps_groups: ClassVar[bool] = True
    compares_updates: ClassVar[bool] = False
    again: ClassVar[Again | None] = None

    num_generations: int = option(4, "Answers to each prompt.", low=2, high=1024)
    max_completion_length: int = option(128, "Tokens of an answer at most.", low=1)
    temperature: float = option(1.0, "Temperature at which answers are drawn.", low=0.01, high=10.0)
    top_p: float = option(1.0, "Draw among the likeliest tokens that make up this probability.", low=0.0, high=1.0)
    top_k: int = option(0, "Draw among this number of likeliest tokens; 0: among all.", low=0)
    min_p: float = option(0.0, "Leave out tokens less likely than this share of the likeliest.", low=0.0, high=1.0)
    num_iterations: int = option(1, "How often all answers are learned from before others are drawn.", low=1, high=100)
    steps_per_generation: int = option(1, "Steps whose prompts are answered together; 0: all prompts at once.", low=0)
    mask_truncated_completions: bool = option(False, "Learn nothing from answers that were cut at their most tokens.")

    @abstractmethod
    def has_signal(self, example: Example) -> bool:
        """Whether anything is learned from an answer."""

    def teaches(self, example: Example) -> bool:
        """Whether an answer is learned by its worth, and not only held to the reference."""
        return self.has_signal(example)

    def worth(self, rewards: Floats, repeated: NDArray[np.bool_], epochs: float) -> Floats:  # noqa: ARG002
        """The worth of each answer, [P, G]: the `reward` of its Example from then on.

        rewards [P, G]: 0 without rewards; repeated [P, G]: whether an answer is the same as an earlier one to its
        prompt; epochs: passes over the rows before these answers. Second answers follow all first ones.
        """
        return rewards

    def held(self, shape: tuple[int, ...], epochs: float) -> Floats:  # noqa: ARG002
        """The `held` of each Example: its answer's hold to the reference. shape: P, G; epochs: as of `worth`."""
        return np.zeros(shape, np.float32)

    @property
    def turns(self) -> int:
        """Answers in a conversation."""
        return 1 if self.again is None else 2

    @property
    def keeps_start(self) -> bool:
        """Whether the adapter that training starts from stays in memory, to be compared with."""
        return self.needs_reference

    @property
    def imitated_epochs(self) -> float:
        """Passes over the rows, before the first answers, that imitate their completions."""
        return 0.0

    @property
    def redraws(self) -> bool:
        """Whether another prompt is answered in place of one whose answers all have the same reward."""
        return False

    def room(self, example: Example) -> int:
        """The tokens of a prompt and its answers."""
        return example.longest + self.turns * self.max_completion_length

    def answer_tokens(self, prompt: int, max_length: int) -> int:
        """The most tokens of an answer to a prompt of `prompt` tokens, in a document of max_length."""
        return min(self.max_completion_length, (max_length - prompt) // self.turns)

    def lengths(self, *parts: Sequence[Example], max_length: int, share: bool) -> Lengths:
        """The lengths of prompts with answers of the greatest length. Raises DataError for a prompt without room."""
        every = [example for part in parts for example in part]
        units = tuple(self._unit(example, max_length, share) for example in every)
        budgets = [self.answer_tokens(example.longest, max_length) for example in every]
        prompts = [example.longest + (self.turns - 1) * c for example, c in zip(every, budgets, strict=True)]
        if not self.needs_top:
            return Lengths(units, prompt=max(prompts, default=0))
        by_teacher = max((n + c for n, c in zip(prompts, budgets, strict=True)), default=0)
        known = AT_ONCE * self.num_generations * max(budgets, default=0) * 2 * self.needs_top * VALUE
        return Lengths(units, prompt=max(prompts, default=0), aside=by_teacher, known=known)

    def _unit(self, example: Example, max_length: int, share: bool) -> Unit:
        g = self.num_generations
        n = example.tokens.size
        c = self.answer_tokens(example.longest, max_length)
        if c < 1:
            raise DataError(f"a prompt of {example.longest} tokens leaves no room for an answer within {max_length}",
                            "raise max-length, or remove the row")
        ends = [n + c] if self.turns == 1 else [n + c, example.longest + 2 * c]
        rows = g * sum(ends)
        return Unit(max(ends), rows, n + g * sum(end - n for end in ends) if share else rows, n if share else 0,
                    g * c * self.turns)


@dataclass(frozen=True)
class Rewarded(Drawn):
    """The common base of objectives that learn from rewards: the rewards of the answers to a prompt become the worth of
    each (`worth`), which is the answer's `Example.reward` from then on. grader and reward name what rewards an answer;
    who trains makes a function of it.
    """

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
