"""Answers that a model drew, their rewards and their metrics."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Protocol, TypeVar, runtime_checkable

import numpy as np
from numpy.typing import NDArray

from ..data.packing import Example
from ..data.trees import micro_batches
from ..models.base import Passes
from ..models.linear import RunShape
from ..serving.labels import asked_tokens, label_tokens, relative
from .passes import scores

if TYPE_CHECKING:
    from ..llamacpp.tokenizer import Tokenizer
    from ..serving.rollouts.engine import Rollout

T = TypeVar("T")
PASS = 1.0  # the least reward of a right answer


@dataclass(frozen=True)
class RewardedAnswer:
    """An answer to reward. item: the row of its prompt, as JSON; ended: whether the model ended it."""

    text: str
    item: str
    ended: bool
    tokens: Sequence[int] = ()


@dataclass(frozen=True)
class Reward:
    """A reward. value: finite. parts: its components, by name."""

    value: float
    parts: Mapping[str, float] = field(default_factory=dict)


Rewards = Callable[[Sequence[RewardedAnswer]], Sequence[Reward]]


@runtime_checkable
class JudgedRewards(Protocol):
    """Rewards that may ask a model. use_model: called once, before the first answers, where needs_model. reserved:
    bytes of memory that are left to processes that grade.
    """

    reserved: int

    @property
    def needs_model(self) -> bool: ...

    def use_model(self, judge: EngineJudge) -> None: ...


def reserved(rewards: Rewards | None) -> int:
    return rewards.reserved if isinstance(rewards, JudgedRewards) else 0


def needs_judge(rewards: Rewards | None) -> bool:
    return isinstance(rewards, JudgedRewards) and rewards.needs_model


@dataclass(frozen=True)
class RewardedGroups:
    """The answers to some prompts, G each, with their rewards; there are none if the objective has no rewards.

    asked: the prompt of each answer; second answers, each with another prompt, follow all first ones.
    penalized [P, G]: rewards less the penalty for long answers; 0 without rewards. turns: answers in a conversation.
    """

    prompts: Sequence[Example]
    asked: Sequence[Sequence[Example]]
    answers: Sequence[Sequence[Rollout]]
    rewards: Sequence[Sequence[Reward]]
    penalized: NDArray[np.float32]
    turns: int = 1

    @property
    def by_turn(self) -> NDArray[np.float32]:
        """penalized as [P, turns, G]."""
        return self.penalized.reshape(len(self.prompts), self.turns, -1)

    @property
    def flat(self) -> NDArray[np.bool_]:
        """Whether all answers to a prompt, of the same turn, have the same reward, [P]."""
        return np.asarray((np.ptp(self.by_turn, axis=2) == 0).all(axis=1))

    @property
    def repeated(self) -> NDArray[np.bool_]:
        """Whether an answer is the same as an earlier one to its prompt, [P, G]."""
        found = np.zeros(self.penalized.shape, np.bool_)
        for p, of_prompt in enumerate(self.answers):
            seen: set[bytes] = set()
            for i, answer in enumerate(of_prompt):
                found[p, i] = answer.tokens.tobytes() in seen
                seen.add(answer.tokens.tobytes())
        return found

    def chosen(self, indices: Sequence[int]) -> RewardedGroups:
        return RewardedGroups([self.prompts[i] for i in indices], [self.asked[i] for i in indices],
                              [self.answers[i] for i in indices], [self.rewards[i] for i in indices],
                              self.penalized[list(indices)], self.turns)

    def with_others(self, other: RewardedGroups) -> RewardedGroups:
        return RewardedGroups([*self.prompts, *other.prompts], [*self.asked, *other.asked],
                              [*self.answers, *other.answers], [*self.rewards, *other.rewards],
                              np.concatenate([self.penalized, other.penalized]), self.turns)

    def with_second(self, second: RewardedGroups) -> RewardedGroups:
        """Appends the second answers; in `second` each is the only answer to its own prompt."""
        count = len(self.prompts)
        g = self.penalized.shape[1]

        def joined(first: Sequence[Sequence[T]], behind: Sequence[Sequence[T]]) -> list[list[T]]:
            flat = [one for of in behind for one in of]
            return [[*of, *flat[i * g:(i + 1) * g]] for i, of in enumerate(first)]

        return RewardedGroups(self.prompts, joined(self.asked, second.asked), joined(self.answers, second.answers),
                              joined(self.rewards, second.rewards),
                              np.concatenate([self.penalized, second.penalized.reshape(count, g)], axis=1), 2)

    def metrics(self) -> dict[str, float]:
        """TRL's names. entropy is estimated by the log p of the tokens that were drawn."""
        answers = [answer for of_prompt in self.answers for answer in of_prompt]
        tokens = np.array([answer.tokens.size for answer in answers])
        logp = np.concatenate([answer.logp for answer in answers])
        return self._rewarded() | {
            "completions/mean_length": float(tokens.mean()), "completions/min_length": float(tokens.min()),
            "completions/max_length": float(tokens.max()),
            "completions/clipped_ratio": float(np.mean([not answer.ended for answer in answers])),
            "entropy": -float(logp.mean())}

    def _rewarded(self) -> dict[str, float]:
        """Returns metrics of the rewards. `reward` is the last turn's. With two turns, `corrected` is the share of
        wrong first answers with a right second one, `spoiled` the share of the reverse.
        """
        rewards = [reward for of_prompt in self.rewards for reward in of_prompt]
        if not rewards:
            return {}
        last = self.by_turn[:, -1]
        found = {"reward": float(last.mean())}
        if last.shape[1] > 1:
            found |= {"reward_std": float(last.std(axis=1, ddof=1).mean()),
                      "frac_reward_zero_std": float(self.flat.mean())}
        if self.turns > 1:
            first = self.by_turn[:, 0]
            found |= {"reward/first": float(first.mean()),
                      "corrected": float(((first < PASS) & (last >= PASS)).mean()),
                      "spoiled": float(((first >= PASS) & (last < PASS)).mean())}
        for name in rewards[0].parts:
            values = np.array([reward.parts.get(name, 0.0) for reward in rewards])
            found |= {f"rewards/{name}/mean": float(values.mean()), f"rewards/{name}/std": float(values.std())}
        return found


@dataclass(frozen=True)
class Expectation:
    """The rewards of last-turn answers to some prompts before training. pass_at_1: the share of answers with a reward
    of at least PASS; pass_at_k: the share of prompts with such an answer among `samples`. frac_reward_zero_std: the
    share of prompts whose answers all have the same reward, so that nothing is learned from them.
    """

    prompts: int
    samples: int
    reward: float
    pass_at_1: float
    pass_at_k: float
    frac_reward_zero_std: float


class EngineJudge:
    """The base as a ScoreModel of graders, in the memory of training, with the adapter switched off. run: of the
    decoder, whose longest document a conversation must fit into.
    """

    name = "self"

    def __init__(self, decoder: Passes, run: RunShape, tokenizer: Tokenizer) -> None:
        self.decoder = decoder
        self.run = run
        self.tokenizer = tokenizer

    def label_probabilities(self, conversations: Sequence[Sequence[Mapping[str, Any]]],
                            labels: Sequence[str]) -> list[list[float] | None]:
        """The probability of each label relative to the others, for each conversation; None if it does not fit.

        Raises UnsupportedError for a model whose tokens do not tell the labels apart.
        """
        tokens = label_tokens(self.tokenizer, labels, "this model")
        prompts = [asked_tokens(self.tokenizer, conversation) for conversation in conversations]
        fitting = [i for i, prompt in enumerate(prompts) if len(prompt) < self.run.max_length]
        examples = [_example(prompts[i], token, group) for group, i in enumerate(fitting, 1) for token in tokens]
        with self.decoder.linear.off():
            logps = scores(self.decoder, micro_batches(examples, self.run.max_tokens, prefix=self.run.prefix))
        found: list[list[float] | None] = [None] * len(prompts)
        for place, i in enumerate(fitting):
            of_conversation = examples[place * len(tokens):(place + 1) * len(tokens)]
            found[i] = relative([logps[id(one)][0] for one in of_conversation])
        return found


def _example(prompt: Sequence[int], label: int, group: int) -> Example:
    """A conversation with a label after it; those of one conversation are a group, which computes it once."""
    weights = np.zeros(len(prompt) + 1, np.float32)
    weights[-1] = 1
    return Example(np.array([*prompt, label], np.int32), weights, group)
