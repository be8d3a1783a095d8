"""Evaluation jobs of a base: the gate evaluates the base in the other side of the daemon's slot, with its adapter.

The present base with its active adapter, and the other one with the adapter that comes with it, answer the held-out
questions of this device. The verdict is kept with the job. Nothing becomes active: who asked switches the slot.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from ....daemon.jobs.table import Job
from ....daemon.kinds.base import JobKind
from ....daemon.kinds.evaluation import EvaluationRequest, questions
from ....daemon.kinds.registry import register
from ....daemon.opening import least_memory
from ....errors import MismatchError, TooMuchError, UsageError, size_text
from ....formats.bundle import MODEL
from ....formats.gguf import Gguf, check_network, open_gguf
from ....formats.slot import SIDES
from ....serving.memory import CONTEXT, memory_needed
from .gate import judged_base
from .slot import ADAPTER, refuse_encoder

if TYPE_CHECKING:
    from ....daemon.jobs.worker import Worker
    from ....daemon.service import Service

TASK = "base.json"  # in the folder of a job: {"side": of the slot, a folder, "required": of it}


@dataclass(frozen=True)
class BaseRequest(EvaluationRequest):
    """Options of an evaluation, of which only required and if_none count. base: the fingerprint of the new base."""

    base: str = ""
    what: ClassVar[str] = "a base"


@register
class BaseJob(JobKind):
    """Jobs that evaluate a base on request, and train nothing."""

    origin = "base"
    trains = False

    def leaves_adapter(self, run: Path) -> bool:  # noqa: ARG002
        return False

    def activates(self, job: Job) -> bool:  # noqa: ARG002
        return False

    def work(self, worker: Worker) -> dict[str, Any]:
        task = json.loads((worker.folder / TASK).read_text())
        side = Path(task["side"])
        brought = side / ADAPTER
        return judged_base(worker, side, brought if brought.is_dir() else None, task["required"])


def begin_base_evaluation(service: Service, request: BaseRequest) -> Job:
    """Begins a job that evaluates the base in the side of the slot that the daemon does not use.

    Raises UsageError if it serves no slot, if the base takes more memory than the daemon has, and if nothing
    can decide; MismatchError for another base than the request names, TooMuchError if memory has room when nobody
    is answered, and errors of open_gguf and of jobs.
    """
    request.check()
    if service.slot is None:
        raise UsageError("this daemon serves no slot, whose base could be replaced",
                         "make one with edgetune fleet slot, and start the daemon with it")
    [side] = (service.slot.folder(side) for side in SIDES if side != service.path.name)
    new = open_gguf(side / MODEL)
    check_network(new)
    if new.fingerprint != request.base:
        raise MismatchError(f"{side} holds the base {new.fingerprint:.19}, the request is about {request.base:.19}",
                            "look at the fleet's folder again")
    refuse_encoder(new.architecture, str(side))
    _require_memory(service, new)
    asked = questions(service, request)
    metadata = {"base": new.fingerprint, "required": request.required, "if_none": request.if_none}
    return asked.begin(BaseJob.origin, service, metadata, lambda beside: (beside / TASK).write_text(
        json.dumps({"side": str(side), "required": asked.required})))


def _require_memory(service: Service, new: Gguf) -> None:
    """Raises UsageError for a base that the daemon could not serve within its memory, or not evaluate now."""
    needed = least_memory(new, service.config, service.bare)
    if needed > service.budget:
        raise UsageError(f"the base needs {size_text(needed)} of memory, the daemon's budget is "
                         f"{size_text(service.budget)}", "start the daemon with a larger --memory, or roll out a "
                         "smaller base")
    room = service.room(has_begun=False)
    needed = memory_needed(new, CONTEXT, repack=False)
    if needed > room.streamed + room.later:
        raise UsageError(f"to evaluate the base next to the present one takes {size_text(needed)} of memory, "
                         f"{size_text(max(room.streamed, 0))} of the daemon's {size_text(service.budget)} are left",
                         "start the daemon with a larger --memory")
    if needed > room.streamed:
        raise TooMuchError("the base can be evaluated when nobody is answered", "look again later")
