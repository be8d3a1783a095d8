"""/v1/fine_tuning: jobs, with pause and resume; graders, checked and tried on one answer before a job uses them."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Annotated, Any

from fastapi import APIRouter, Query

from ...objectives.base import Objective
from ...training.config import TrainConfig
from ...training.length import peak_rate
from ..jobs.recipe import objective_of
from ..jobs.rewards import shown
from .completions import TheService
from .errors import RESPONSES, JsonRoute, about
from .fine_tuning_schemas import (
    CheckpointObject,
    GradeObject,
    GradeRequest,
    GraderRequest,
    JobEvent,
    JobObject,
    JobRequest,
    ValidGrader,
)
from .schemas import Page

router = APIRouter(prefix="/v1/fine_tuning", route_class=JsonRoute, responses=RESPONSES)
STATUSES = {"pausing": "running", "paused": "queued"}  # OpenAI's, of those that it has no word for
VERDICT = ("passed", "reason", "old", "new")  # its adapter has all of it
After = Annotated[str | None, Query(description="The id after which the part begins.")]
Limit = Annotated[int, Query(ge=1, le=100, description="Items of the part at most.")]


@router.post("/jobs", response_model=JobObject)
def create_job(body: JobRequest, service: TheService) -> Any:
    """Begins a training on an uploaded file. It waits for the jobs before it."""
    options = body.options()
    if kind := options.get("method", {}).get("type"):
        with about(f"method.{kind}.grader"):
            service.jobs.check_grader(options["method"], options["hyperparameters"])
    return job_object(service.jobs.create(**{**options, "model": service.spelled(options["model"])}))


@router.get("/jobs", response_model=Page[JobObject])
def list_jobs(service: TheService, after: After = None, limit: Limit = 20) -> Any:
    """Lists jobs, the newest first."""
    return page([job_object(job) for job in service.jobs.list(after, limit + 1)], limit)


@router.get("/jobs/{job}", response_model=JobObject)
def get_job(job: str, service: TheService) -> Any:
    """Returns a job, with its progress while it runs."""
    return job_object(service.jobs.get(job))


@router.post("/jobs/{job}/cancel", response_model=JobObject)
def cancel_job(job: str, service: TheService) -> Any:
    """Ends a job without an adapter."""
    return job_object(service.jobs.cancel(job))


@router.post("/jobs/{job}/pause", response_model=JobObject)
def pause_job(job: str, service: TheService) -> Any:
    """Saves a job and sets it aside until it is resumed. The next one in the queue begins."""
    return job_object(service.jobs.pause(job))


@router.post("/jobs/{job}/resume", response_model=JobObject)
def resume_job(job: str, service: TheService) -> Any:
    """Puts a paused job into the queue again. It continues where it was saved."""
    return job_object(service.jobs.resume(job))


@router.get("/jobs/{job}/events", response_model=Page[JobEvent])
def list_events(job: str, service: TheService, after: After = None, limit: Limit = 20) -> Any:
    """Lists what happened in a job, the latest first."""
    return page(service.jobs.events(job, after, limit + 1), limit)


@router.get("/jobs/{job}/checkpoints", response_model=Page[CheckpointObject])
def list_checkpoints(job: str, service: TheService, after: After = None, limit: Limit = 10) -> Any:
    """Lists measurements of the held-out loss, the latest first. The best one becomes the adapter."""
    return page(service.jobs.checkpoints(job, after, limit + 1), limit)


def page(found: Sequence[Any], limit: int) -> dict[str, Any]:
    """The list object of OpenAI. found: one more than `limit`, if there are more."""
    return {"data": found[:limit], "has_more": len(found) > limit}


def job_object(job: Any) -> dict[str, Any]:
    """A job as OpenAI's API describes it."""
    config = job.config
    eta = (job.progress or {}).get("eta_s")
    kind = job.method["type"]
    objective, _ = objective_of(job.method)
    named = {"n_epochs": config["epochs"], "batch_size": config["batch_size"],
             "learning_rate_multiplier": _multiplier(job, objective)}
    others = {name: value for name, value in job.method[kind].items() if name != "hyperparameters"}
    return {
        **vars(job), "status": STATUSES.get(job.status, job.status), "state": job.status,
        "estimated_finish": int(time.time() + eta) if eta is not None else None,
        "fine_tuned_model": job.result, "hyperparameters": named,
        "method": {"type": kind, kind: {**others, "hyperparameters": {**config, **shown(objective, job), **named}}},
        "verdict": job.verdict and {name: job.verdict[name] for name in VERDICT if name in job.verdict},
        "rounds": job.rounds or [], "report": f"{router.prefix}/jobs/{job.id}/report" if job.report else None,
    }


def _multiplier(job: Any, objective: Objective) -> float:
    """The factor on the learning rate that the job would have had by default, which may be an adapter's."""
    asked = job.method[job.method["type"]]["hyperparameters"]
    if isinstance(asked.get("learning_rate_multiplier"), float | int):
        return float(asked["learning_rate_multiplier"])
    if not isinstance(asked.get("lr"), float | int):
        return 1.0
    return float(asked["lr"]) / peak_rate(TrainConfig(**objective.defaults), 0)


@router.post("/alpha/graders/validate", response_model=ValidGrader)
def validate_grader(body: GraderRequest, service: TheService) -> Any:
    """Checks a grader. A score_model can be run here, and is refused for training."""
    with about("grader"):
        service.grading.read(body.grader)
    return {"grader": body.grader}


@router.post("/alpha/graders/run", response_model=GradeObject)
def run_grader(body: GradeRequest, service: TheService) -> Any:
    """Grades one answer. A score_model asks the base itself."""
    with about("grader"):
        grader = service.grading.read(body.grader)
    with about("item"):
        found = service.grading.run(body.grader, body.model_sample, body.item or {})
    judged = service.name if found.usage else None
    return {"reward": found.grade.reward, "sub_rewards": found.grade.parts,
            "metadata": {"name": grader.name, "type": grader.type, "errors": found.grade.errors,
                         "execution_time": found.seconds, "scores": found.grade.parts,
                         "token_usage": found.usage.get("total_tokens"), "sampled_model_name": judged},
            "model_grader_token_usage_per_model": {judged: found.usage} if judged else {}}
