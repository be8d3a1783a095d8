"""What a daemon's tutor is asked to do, by the daemon's options or in the folder of a job."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from ...daemon.jobs.rewards import with_rewards
from ...daemon.learning.method import read_options
from ...daemon.options import DaemonConfig
from ...errors import DataError, UsageError
from ...evaluation.graders.base import load_grader
from ...objectives.base import Objective
from ...objectives.grpo import Grpo
from ...objectives.sft import Sft
from ...options import make_options
from .rounds.options import TutorOptions, of_earlier

if TYPE_CHECKING:
    from .options import KeptPromptOptions

TASK = "task.json"  # in the folder of a job: options and grader
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
    given = own(config)
    if not config.learn.startswith("tutor"):
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


def task_of(folder: Path, method: Mapping[str, Any]) -> TutorTask:
    """Returns a job's task; a job of an earlier version has its options in its method."""
    if (folder / TASK).exists():
        found = json.loads((folder / TASK).read_text())
    else:
        part = method[method["type"]]
        found = {"given": part["tutor"], "grader": part.get("grader")}
    return TutorTask(of_earlier(found["given"]), found["grader"])


def own(config: DaemonConfig) -> KeptPromptOptions:
    """Returns a daemon's options as those of this part."""
    return cast("KeptPromptOptions", config)
