"""Rewards for the answers of a training, from a grader or a reward function."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from ...data.packing import Example
from ...errors import DataError, UsageError
from ...objectives.drawn import Rewarded
from ...training.rewards import Reward, RewardedAnswer
from .base import Grader, ScoreModel, load_grader, read_grader
from .reward import RewardFunction, load_reward
from .sample import Sample
from .sandbox import limited_processes, share_of


@dataclass
class GraderRewards:
    """Rewards as a Roller takes them. means: the arguments with which the grader was read. reserved: bytes of memory
    that the plan of the training leaves to processes of the grader.
    """

    judge: Grader | RewardFunction
    means: Mapping[str, Any] = field(default_factory=dict)
    reserved: int = 0

    @property
    def needs_model(self) -> bool:
        return self.judge.needs_model

    @property
    def process_bytes(self) -> int:
        return self.judge.process_bytes

    @property
    def compares(self) -> bool:
        return self.judge.compares

    def reserve(self, left: int) -> None:
        """Leaves some of `left` bytes to processes of the grader."""
        self.reserved = share_of(left, self.process_bytes)

    def limited(self) -> AbstractContextManager[None]:
        """Limits processes of the grader to what is reserved."""
        return limited_processes(self.reserved)

    def use_model(self, judge: ScoreModel) -> None:
        """Makes this model the one that scores answers for the grader."""
        assert isinstance(self.judge, Grader)
        self.judge = self.judge.with_model(judge, **self.means)

    def __call__(self, answers: Sequence[RewardedAnswer]) -> list[Reward]:
        """Grades answers. Raises EdgetuneError where the grader fails."""
        samples = [Sample(answer.text, finish_reason="stop" if answer.ended else "length", tokens=answer.tokens)
                   for answer in answers]
        grades = self.judge.grade(samples, [json.loads(answer.item) for answer in answers])
        return [Reward(grade.reward, dict(grade.parts) or {self.judge.name: grade.reward}) for grade in grades]

    def check_alone(self, hint: str) -> None:
        """Raises UsageError, with this way out, where one answer to a held-out prompt cannot be rewarded."""
        if self.compares:
            raise UsageError(f"the grader {self.judge.name} compares the answers to a prompt, and held-out prompts are "
                             "answered once", hint)

    def check(self, prompts: Iterable[Example]) -> None:
        """Raises DataError for the first row that lacks a column that the grader names."""
        for number, prompt in enumerate(prompts, start=1):
            try:
                self.judge.check_item(json.loads(prompt.item))
            except DataError as error:
                raise DataError(f"row {number}: {error.what}", error.hint) from None


def rewards_of(objective: Rewarded, function: Callable[..., Any] | None = None,
               allow_python: bool = True) -> tuple[Rewarded, GraderRewards]:
    """(the objective with its grader's JSON in place of a file's name, its rewards).

    function: a reward function, in place of a name. allow_python: without, python graders are refused. Raises
    UsageError where neither is named, and for an invalid grader.
    """
    if function is not None:
        if objective.grader or objective.reward:
            raise UsageError("a reward function and a grader are both given", "leave one of them out")
        return objective, GraderRewards(RewardFunction(getattr(function, "__name__", "reward"), function))
    if objective.reward:
        return objective, GraderRewards(load_reward(objective.reward))
    if not objective.grader:
        raise UsageError(f"{objective.name} needs something that rewards answers",
                         "name a grader with --grader FILE, or a function with --reward module:function")
    means: dict[str, Any] = {"allow_python": allow_python, "allow_unsafe_python": objective.unsafe_python}
    grader = _grader(objective.grader, means)
    return replace(objective, grader=json.dumps(grader.to_json())), GraderRewards(grader, means)


def _grader(named: str, means: dict[str, Any]) -> Grader:
    """Reads a grader from a file's name, or from JSON."""
    if not named.lstrip().startswith("{"):
        return load_grader(Path(named), **means)
    try:
        written = json.loads(named)
    except (ValueError, RecursionError):
        raise UsageError(f"the grader {named!r:.60} is no JSON", "name a file") from None
    return read_grader(written, **means)
