"""The method by which a daemon learns from feedback: the rows that it takes, and the options of its jobs."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from ...errors import DataError, UsageError
from ...evaluation.graders.rewards import GraderRewards
from ...objectives.base import Objective, objectives
from ...objectives.drawn import Rewarded
from ...objectives.sft import Sft
from ...options import AUTO, declared, share_of
from ...training.config import TrainConfig, train_options
from ..jobs import recipe
from ..jobs.rewards import ELSEWHERE, with_rewards
from ..options import MORE, DaemonConfig
from .items import Row
from .row_kinds import ANSWERS, HAS_ANSWER, LABELLED, RowKind, kind_of

POSSIBLE = ("!", "1", '{"a": 1}')  # right answers: a grader that accepts none of them can use no feedback


@dataclass(frozen=True)
class LearnMethod:
    """A method. objective: with options. kind: of feedback's rows. asked: its jobs' method, as OpenAI's object.
    training: options of its trainings that are not chosen by the rows.
    """

    objective: Objective
    kind: RowKind
    asked: Mapping[str, Any]
    training: Mapping[str, Any] = field(default_factory=dict)

    @property
    def imitates(self) -> bool:
        """Returns whether it learns right answers themselves, with which others can be mixed."""
        return self.kind in (ANSWERS, LABELLED)

    def train(self, base: TrainConfig) -> TrainConfig:
        """Returns the options of its jobs."""
        return replace(base, **self.objective.defaults)

    def unused(self, count: int) -> str:
        """Returns a sentence on feedback that it cannot learn from; "": there is none."""
        pieces = "1 piece of feedback waits" if count == 1 else f"{count} pieces of feedback wait"
        return f"{pieces}: {self.objective.name} learns from {self.kind.says}" if count else ""


def learn_method(config: DaemonConfig, supervised: str = "") -> LearnMethod:
    """Returns the daemon's method. supervised: the objective by which its model learns right answers; "": the model is
    not known. Raises UsageError for a method that cannot learn from feedback, or lacks an option.
    """
    name = (supervised or Sft.name) if config.learn_method == AUTO else config.learn_method
    known = objectives(train_options())
    kinds = {name: kind for name, each in known.items()
             if not each.needs_files and (kind := kind_of(each.rows))}
    if name not in kinds:
        raise UsageError(f"learn-method is {name!r:.40}, which does not learn from feedback",
                         f"choose from {', '.join(kinds)}")
    if supervised and recipe.teaches_labels(known[name]) != recipe.teaches_labels(known[supervised]):
        raise UsageError(f"learn-method is {name}, by which this model cannot learn", f"choose {supervised}")
    is_open = config.learn_method == AUTO and not supervised  # it may be labels that are taught
    objective, training = _objective(name, config, recipe.teaches_labels(known[name]) or is_open)
    kind = kinds[name]
    if isinstance(objective, Rewarded):
        if not (objective.grader or objective.reward):
            raise UsageError(f"learn-method {name} needs learn-grader",
                             "name a file with a grader: --learn-grader FILE")
        if objective.imitated_epochs:
            raise UsageError(f"learn-method is {name}, which imitates rows of prompt and completion first, and "
                             "feedback has conversations", "choose grpo, or give --learn-options warmup_epochs=0")
        objective, rewards = with_rewards(objective, config.python())
        assert rewards
        kind = _gradable(kind, rewards)
    elif config.learn_grader and not config.learns_more:
        ways = ["choose a learn-method such as grpo", *(f"--learn {value}" for value, _ in MORE)]
        raise UsageError(f"learn-grader is given, and {name} learns from {kind.says}",
                         f"leave it out, {', or '.join(ways)}")
    return LearnMethod(objective, kind, _asked(objective), training)


def _gradable(kind: RowKind, rewards: GraderRewards) -> RowKind:
    """Restricts a kind to feedback that this grader can use: with a right answer, where the grader names that, and with
    all that it needs in the row, such as an answer that is JSON.
    """
    def wrong(row: Row) -> DataError | None:
        try:
            rewards.judge.check_item(row)
        except DataError as error:
            return error
        return None

    if wrong({"prompt": "?"}):
        kind = replace(kind, usable=HAS_ANSWER, evaluable=HAS_ANSWER,
                       says="questions with a right answer, which its grader names")
    found = [wrong({"prompt": "?", "completion": text}) for text in POSSIBLE]
    if all(found):
        raise UsageError(f"learn-grader cannot be used: {found[0].what if found[0] else ''}",
                         "feedback has item.prompt, and item.completion where a right answer is known")
    learned = kind.learned
    return replace(kind, learned=lambda item: [row for row in learned(item) if not wrong(row)])


def _objective(name: str, config: DaemonConfig, may_train: bool) -> tuple[Objective, dict[str, Any]]:
    """Returns an objective with the options that are given, where its grader is still a file's name, and options of
    training, which a method of labels takes: the rows decide those of others.
    """
    kind = objectives()[name]
    given = read_options(config.learn_options)
    method = {"type": kind.method, kind.method: {"hyperparameters": given}}
    objective, others = recipe.objective_of(method)
    if strange := [option for option in others if not may_train or option not in train_options()]:
        raise UsageError(f"learn-options names {strange[0]!r:.40}, which is no option of {name}",
                         f"it has {', '.join(objective.options()) or 'none'}")
    recipe.options(TrainConfig(), others)  # raises for a wrong value
    if config.learn_grader and isinstance(objective, Rewarded):
        return replace(objective, grader=config.learn_grader).check(), {}
    return objective, others


def read_options(text: str) -> dict[str, Any]:
    """Reads options such as "beta=0.2,loss_type=ipo". Raises UsageError."""
    found: dict[str, Any] = {}
    for part in filter(None, text.split(",")):
        name, separator, value = part.partition("=")
        if not separator:
            raise UsageError(f"learn-options has {part!r:.40}", "write beta=0.2,loss_type=ipo")
        key = name.strip().replace("-", "_")
        try:
            found[key] = json.loads(value)
        except ValueError:  # a percentage, or text without quotes
            share = share_of(value.strip())
            found[key] = value.strip() if share is None else share
    return found


def _asked(objective: Objective) -> dict[str, Any]:
    options = {spec.name: getattr(objective, spec.name) for spec in declared(type(objective))}
    part: dict[str, Any] = {}
    if isinstance(objective, Rewarded):
        options = {name: value for name, value in options.items() if name not in ELSEWHERE}
        part = {"grader": json.loads(objective.grader)} if objective.grader else {}
    return {"type": objective.method, objective.method: {"hyperparameters": options, **part}}
