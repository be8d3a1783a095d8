"""The tutor within a daemon: it keeps the prompts that the model answered, which its jobs (job.py) ask again."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from ...daemon.options import DaemonConfig
from ...daemon.running import RunningPart
from ...serving.question import Question
from .prompts import KeptPrompts
from .task import own

if TYPE_CHECKING:
    from ...daemon.service import Service

NAME = "tutor"  # of the part


class RunningTutor(RunningPart):
    """The kept prompts of a daemon. It runs in every daemon: one that may keep none deletes those of before."""

    prompts: KeptPrompts

    def __init__(self, config: DaemonConfig) -> None:
        self.most = own(config).keep_prompts

    @property
    def keeps_questions(self) -> bool:
        return self.most > 0

    @property
    def note(self) -> Callable[[Question], object] | None:
        return self.prompts.keep if self.most else None

    def join(self, service: Service) -> None:
        self.prompts = KeptPrompts(service.store, self.most)
        self.prompts.on_deleted.append(service.traffic.forget)

    def device(self) -> dict[str, Any]:
        return {"keep_prompts": self.most}


def prompts_of(service: Service) -> KeptPrompts:
    """Returns the prompts that a daemon keeps."""
    tutor = service.running[NAME]
    assert isinstance(tutor, RunningTutor)
    return tutor.prompts
