"""The task of a daemon's tutor, by the daemon's options."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from ...daemon.jobs.rewarded import with_rewards
from ...daemon.learning.method import read_options
from ...errors import DataError, UsageError
from ...evaluation.graders.base import load_grader
from ...objectives.base import Objective
from ...objectives.grpo import Grpo
from ...objectives.sft import Sft
from ...options import make_options
from .rounds.options import TutorOptions

if TYPE_CHECKING:
    from ...daemon.options import DaemonConfig
    from .options import KeptPromptOptions

DEFAULT_ROUNDS = 3  # unless another number is given


@dataclass(frozen=True)
class TutorTask:
    """A tutor's task. given: the options of TutorOptions that are named; grader: as JSON, None without."""

    given: Mapping[str, Any]
    grader: Mapping[str, Any] | None

    @property
    def options(self) -> TutorOptions:
        return make_options(TutorOptions, {"rounds": DEFAULT_ROUNDS, **self.given}).check()

    @property
    def objective(self) -> Objective:
        """Returns the gate's objective: the grader's rewards, where no right answer is known."""
        if self.grader is None:
            return Sft()
        return Grpo(grader=json.dumps(self.grader), max_completion_length=self.options.max_tokens)


def tutor_task(config: DaemonConfig) -> TutorTask | None:
    """Returns the task of a daemon's tutor; None where --learn names none. Raises UsageError for wrong options."""
    given = cast("KeptPromptOptions", config)
    if not tutors(config):
        if given.tutor_options:
            raise UsageError(f"tutor-options is given, and learn is {config.learn}",
                             "leave it out, or choose --learn tutor")
        return None
    if not given.keep_prompts:
        raise UsageError(f"learn is {config.learn}, which asks the prompts of people again, and none is kept",
                         "say how many may be kept, such as --keep-prompts 1000")
    grader = None
    if config.learn_grader:
        path = Path(config.learn_grader).expanduser()
        read = load_grader(path, allow_python=config.allow_python_graders)
        try:
            read.check_item({"prompt": "?"})
        except DataError as error:
            raise UsageError(f"learn-grader cannot score answers to the prompts of people: {error.what}",
                             "a prompt has item.prompt, or item.messages, and no right answer") from None
        grader = read.to_json()
    task = TutorTask(read_options(given.tutor_options), grader)
    task.options  # noqa: B018 (checked)
    with_rewards(task.objective, config.python())
    return task


def tutors(config: DaemonConfig) -> bool:
    """Returns whether a daemon learns from prompts."""
    return config.learn.startswith("tutor")
