"""Evaluation jobs: the gate evaluates an adapter that is here already, by the held-out questions of this device.

The active adapter and the other one answer the held-out questions of all feedback, and those of the file that the
active one learned. The verdict is kept with the adapter. If it passed, and the request says so, it becomes active.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from ...errors import UsageError
from ..jobs.exam import BETTER, NOT_WORSE
from ..jobs.jobs import JobData
from ..jobs.recipe import NONE_DRAWN, DrawnQuestions
from ..jobs.table import Job
from ..learning.curriculum import JobRows
from ..learning.feedback import StoredRow
from ..learning.file_rows import FileRow, rows_of_active
from ..options import Limits
from ..probation import begun
from ..state.holdout import LEAST, MOST
from .base import JobKind
from .registry import register

if TYPE_CHECKING:
    from ..jobs.worker import Worker
    from ..service import Service
    from ..state.adapters import Adapters, RegisteredAdapter

TASK = "evaluation.json"  # in the folder of a job: {"folder": of the adapter, "required": of it}
REQUIRED = (BETTER, NOT_WORSE)
REFUSE = "refuse"
CANARY = "canary"
IF_NONE = (REFUSE, CANARY)
LONGEST = 366 * 86_400  # seconds of probation
MOST_RATINGS = 1000


@dataclass(frozen=True)
class EvaluationRequest:
    """Options of an evaluation. promote: the adapter becomes active if it passes. required: better than the active one,
    or not worse, by the rules of decide.py. if_none: fewer than LEAST questions are held out: refuse, or let unrelated
    text alone decide (canary). probation: seconds after its activation in which it is rolled back after `bad_ratings`
    bad ones; 0: none.
    """

    promote: bool = False
    required: str = BETTER
    if_none: str = REFUSE
    probation: int = 0
    bad_ratings: int = 3
    what: ClassVar[str] = "an adapter"

    def check(self) -> EvaluationRequest:
        """Raises UsageError for a value out of its range."""
        for name, choices in (("required", REQUIRED), ("if_none", IF_NONE)):
            if getattr(self, name) not in choices:
                raise UsageError(f"{name} is {getattr(self, name)!r:.40}", f"choose from {', '.join(choices)}")
        for name, least, most in (("probation", 0, LONGEST), ("bad_ratings", 1, MOST_RATINGS)):
            if not least <= getattr(self, name) <= most:
                raise UsageError(f"{name} is {getattr(self, name)}", f"choose from {least} to {most}")
        if self.probation and not self.promote:
            raise UsageError("probation is given without promote", "give both, or neither")
        return self


@register
class EvaluationJob(JobKind):
    """Jobs that evaluate an adapter on request, and train nothing."""

    origin = "evaluate"
    trains = False

    def kept(self, adapters: Adapters, job: Job) -> RegisteredAdapter | None:
        found = adapters.get(job.metadata["adapter"])
        return found if found.verdict.get("job") == job.id else None

    def keep(self, adapters: Adapters, job: Job, run: Path, verdict: Mapping[str, Any]) -> RegisteredAdapter:  # noqa: ARG002
        request = request_of(job)
        kept = {**verdict, "job": job.id}
        if verdict["passed"] and request.probation:
            kept["probation"] = begun(request.probation, request.bad_ratings)
        return adapters.set_verdict(job.metadata["adapter"], kept)

    def drop(self, adapters: Adapters, made: RegisteredAdapter) -> None:
        adapters.set_verdict(made.id, {**made.verdict, "job": ""})

    def activates(self, job: Job) -> bool:
        return request_of(job).promote

    def work(self, worker: Worker) -> dict[str, Any]:
        task = json.loads((worker.folder / TASK).read_text())
        return worker.judged(Path(task["folder"]), task["required"])


def request_of(job: Job) -> EvaluationRequest:
    """Returns the request, from the job's metadata."""
    given = {field.name: json.loads(job.metadata[field.name]) for field in fields(EvaluationRequest)}
    return EvaluationRequest(**given)


def begin_evaluation(service: Service, id: str, request: EvaluationRequest) -> Job:
    """Begins a job that evaluates an adapter. Raises UsageError where it is active, and where nothing can decide."""
    request.check()
    adapter = service.adapters.get(id)
    if adapter.state == "serving":
        raise UsageError(f"{id} is active, and would be compared with itself", "name another adapter")
    asked = questions(service, request)
    metadata = {"adapter": id, **{name: json.dumps(value) for name, value in asdict(request).items()}}
    task = json.dumps({"folder": str(service.adapters.path(id)), "required": asked.required})
    return asked.begin(EvaluationJob.origin, service, metadata, lambda beside: (beside / TASK).write_text(task))


@dataclass(frozen=True)
class HeldOutQuestions:
    """The held-out rows of this device. rounds: the jobs that the first ones are from. required: as of Exam. system: of
    the active adapter. drawn: questions that were drawn from all that people asked.
    """

    held: list[StoredRow | FileRow]
    rounds: list[str]
    required: str
    system: str
    drawn: DrawnQuestions = NONE_DRAWN

    def begin(self, origin: str, service: Service, metadata: dict[str, str], fill: Callable[[Path], object]) -> Job:
        """Begins a job that evaluates by them. Raises errors of jobs."""
        kind = service.method.kind
        data = JobData(None, JobRows(service.feedback, self.held, lambda item: [kind.for_gate(item)]), self.rounds,
                       drawn=self.drawn, fill=fill, system=self.system)
        return service.jobs.begin(origin, data, service.method.asked, suffix="", metadata=metadata, hyperparameters={})


def questions(service: Service, request: EvaluationRequest) -> HeldOutQuestions:
    """Returns the rows that decide. Raises UsageError where nothing can."""
    train = service.jobs.train
    system = "" if train.prompt else train.system or service.served.system_of(service.adapters.serving)
    file = rows_of_active(service.jobs, service.method.kind.parser, service.feedback.questions(), system)
    rows = service.feedback.training_rows(MOST - len(file.held))
    drawn = service.traffic.rows(service.method.kind)
    apart = service.traffic.names()
    given = [row for row in rows.fresh if row.question not in apart]
    held: list[StoredRow | FileRow] = [*file.held, *rows.established, *given]
    if len(held) + len(drawn) < LEAST:
        _require_canary(request, len(held), service.config.limits())
        return HeldOutQuestions([], [], NOT_WORSE, system)
    return HeldOutQuestions(held, [file.name] * len(file.held) + [*rows.rounds], request.required, system,
                     drawn)


def _require_canary(request: EvaluationRequest, count: int, limits: Limits) -> None:
    """Raises UsageError unless unrelated text can decide, and may."""
    if request.if_none == REFUSE:
        held = "1 question is" if count == 1 else f"{count} questions are"
        raise UsageError(f"{held} held out on this device, and {LEAST} are needed to evaluate {request.what}",
                         f"correct some answers, or let unrelated text decide alone: if_none={CANARY}")
    if limits == Limits():
        raise UsageError("nothing can decide: no questions are held out, and unrelated text has no limits",
                         "start the daemon with --canary-rise or --max-kl")
