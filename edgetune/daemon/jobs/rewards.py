"""Jobs that learn from rewards: OpenAI's names of their hyperparameters, their grader, the rewards of held-out answers.
"""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeGuard

import numpy as np

from ...data import prompts
from ...data import rows as supervised_rows
from ...data.question import digest
from ...data.rows import Row
from ...errors import DataError, EdgetuneError, UnsupportedError, UsageError
from ...evaluation.graders.reward import RewardFunction, reward_in
from ...evaluation.graders.rewards import GraderRewards, rewards_of
from ...objectives.base import Objective
from ...objectives.drawn import Rewarded
from ...options import AUTO
from ...training.rewards import EngineJudge, RewardedAnswer
from ..options import AllowedPython
from .table import Job

GRADER = "grader"  # next to the hyperparameters, as OpenAI has it
REWARD = "reward"  # the hyperparameter that names a function instead
IN_FOLDER = re.compile(r"(?P<module>[A-Za-z_]\w{0,99}(?:\.[A-Za-z_]\w{0,99}){0,9}):(?P<function>[A-Za-z_]\w*)",
                       re.ASCII)  # a module, in folders or not, and a function
ELSEWHERE = (GRADER, "unsafe_python")  # options of an objective that are no hyperparameters of a job
EFFORT = "default"  # the only reasoning_effort: there is no reasoning apart from the answer
MIN_GENERATIONS = 2


def translated(kind: type[Rewarded], asked: Mapping[str, Any]) -> dict[str, Any]:
    """Translates hyperparameters with OpenAI's names of reinforcement to ours. Raises UsageError."""
    found = dict(asked)
    for name in ELSEWHERE:
        if name in found:
            raise UsageError(f"{name} is no hyperparameter of a job", "give the grader as an object next to these")
    effort = found.pop("reasoning_effort", EFFORT)
    if effort != EFFORT:
        raise UsageError(f"reasoning_effort is {effort!r:.40}, and the model does not reason apart from its answer",
                         f"leave it out, or write {EFFORT}")
    interval = found.pop("eval_interval", AUTO)
    if interval != AUTO:
        _say_once(found, "eval_every", "eval_interval")
        found["eval_every"] = interval
    multiplier = found.pop("compute_multiplier", AUTO)
    if multiplier != AUTO:
        _say_once(found, "num_generations", "compute_multiplier")
        if isinstance(multiplier, bool) or not isinstance(multiplier, int | float) or not 0 < multiplier < 1000:
            raise UsageError(f"compute_multiplier is {multiplier!r:.40}", "give a number above 0; 1 is the default")
        found["num_generations"] = max(round(kind.num_generations * multiplier), MIN_GENERATIONS)
    samples = found.pop("eval_samples", AUTO)
    if samples != AUTO and (isinstance(samples, bool) or not isinstance(samples, int) or samples < 1):
        raise UsageError(f"eval_samples is {samples!r:.40}", "give the number of held-out prompts to answer, 1 or more")
    return found


def _say_once(found: Mapping[str, Any], ours: str, openai: str) -> None:
    if ours in found:
        raise UsageError(f"{openai} and {ours} set the same option", "give one of them")


def eval_samples(method: Mapping[str, Any]) -> int | None:
    """Returns the number of held-out prompts that a measurement of training answers; None: all."""
    found = method[method["type"]]["hyperparameters"].get("eval_samples", AUTO)
    return None if found == AUTO else int(found)


def grader_of(method: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the objective's option for the grader of a job. Raises UsageError unless it is an object."""
    grader = method[method["type"]].get(GRADER)
    if grader is None:
        return {}
    if not isinstance(grader, Mapping):
        raise UsageError(f"the grader is {grader!r:.60}, no object", 'write {"type": "string_check", ...}')
    return {GRADER: json.dumps(grader)}


def with_rewards(objective: Objective, python: AllowedPython,
                 runs: bool = False) -> tuple[Objective, GraderRewards | None]:
    """Returns (the objective of a job, its rewards; None: it does not learn from rewards).

    runs: whether this process grades answers. Only such a process imports a reward function, which is code by anyone
    who may write to the folder; another checks the name. Raises UsageError for a grader or a name that cannot be used.
    """
    if not isinstance(objective, Rewarded):
        return objective, None
    if not (objective.grader or objective.reward):
        raise UsageError(f"the method {objective.method} needs a grader",
                         'give one next to its hyperparameters: {"type": "string_check", ...}')
    if objective.reward:
        path, function = _reward_file(objective.reward, python.rewards)
        if runs:
            sys.path.append(python.rewards)  # for modules in the folder that the module imports
        return objective, GraderRewards(reward_in(str(path), function) if runs else RewardFunction(function, _not_here))
    objective, rewards = rewards_of(objective, allow_python=python.graders)
    if rewards.needs_model:
        rewards.use_model(_Itself())
    rewards.check_alone("use a grader that grades each answer by itself, or train by edgetune train")
    return objective, rewards


def _reward_file(named: str, folder: str) -> tuple[Path, str]:
    """Returns (the file of a reward function, its name). Raises UsageError."""
    if not folder:
        raise UsageError(f"the reward function {named!r:.80} is refused: this daemon has no folder of them",
                         "use a grader, or start the daemon with --rewards FOLDER")
    if not (found := IN_FOLDER.fullmatch(named)):
        raise UsageError(f"the reward function is {named!r:.80}", "write module:function, a module of --rewards FOLDER")
    path = Path(folder, *found["module"].split(".")).with_suffix(".py")
    if not path.is_file():
        raise UsageError(f"there is no module {found['module']:.80} in the daemon's folder of reward functions",
                         "name one that is there")
    return path, found["function"]


def _not_here(**_: Any) -> list[float]:
    raise EdgetuneError("a reward function runs only in the process that trains", "report it")


class _Itself:
    """The only model that a job's grader may name. Training and gate put the model itself in its place."""

    name = EngineJudge.name

    def label_probabilities(self, *_asked: Any) -> list[list[float] | None]:
        raise UnsupportedError("no model was given that grades", "report it")


def shown(objective: Objective, job: Job) -> dict[str, Any]:
    """Returns an objective's options for a job object, by their names and OpenAI's."""
    options = objective.options()
    if not isinstance(objective, Rewarded):
        return options
    options = {name: value for name, value in options.items() if name not in ELSEWHERE}
    asked = job.method[job.method["type"]]["hyperparameters"]
    multiplier = asked.get("compute_multiplier", AUTO)
    if multiplier == AUTO:
        multiplier = objective.num_generations / type(objective).num_generations
    return {**options, "compute_multiplier": multiplier, "eval_interval": job.config["eval_every"] or AUTO,
            "eval_samples": asked.get("eval_samples", AUTO), "reasoning_effort": EFFORT}


# ---- held-out rows ---------------------------------------------------------------------------------------------------


def asks(row: Row) -> TypeGuard[Mapping[str, Any]]:
    """Returns whether such an objective can read a row: one with a prompt."""
    try:
        prompts.check_learnable(row)
    except DataError:
        return False
    return True


def has_answer(row: Row) -> bool:
    """Returns whether a row with a prompt has an answer to compare: a completion, not earlier turns."""
    if "messages" in row:
        return False
    try:
        supervised_rows.check_row(row)
    except DataError:
        return False
    return True


@dataclass(frozen=True)
class Rewarding:
    """The rewards of a job's held-out answers: by the grader that it is trained with, up to as many tokens."""

    objective: Rewarded
    rewards: GraderRewards

    def judges(self, row: Row) -> bool:
        return asks(row) and not has_answer(row)

    def key(self, row: Row) -> str:
        """Returns a digest of the row and of all that decides the reward of its answer, such as the job's grader."""
        objective = self.objective
        return digest({"row": row, "grader": objective.grader or objective.reward,
                       "tokens": [objective.max_completion_length, objective.overlong_tokens]})

    def earned(self, answers: Sequence[RewardedAnswer]) -> list[float]:
        """Returns the reward of each answer, less the penalty for its length."""
        values = np.array([reward.value for reward in self.rewards(answers)], np.float32)
        tokens = np.array([len(answer.tokens) for answer in answers])
        return [float(value) for value in self.objective.penalized(values, tokens)]
