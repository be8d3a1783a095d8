"""/v1/fine_tuning/jobs, with pause and resume."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Annotated, Any

from fastapi import APIRouter, Query

from ...objectives.base import Objective
from ...training.config import TrainConfig
from ...training.length import peak_rate
from ..jobs.recipe import objective_of
from ..jobs.rewarded import shown
from . import schemas
from .completions import TheService
from .errors import JsonRoute, about

router = APIRouter(prefix="/v1/fine_tuning/jobs", route_class=JsonRoute)
After = Annotated[str | None, Query(description="The id after which the page begins.")]
Limit = Annotated[int, Query(ge=1, le=100)]


@router.post("", response_model=schemas.Job)
def create_job(body: schemas.JobRequest, service: TheService) -> Any:
    options = body.options()
    if kind := options.get("method", {}).get("type"):
        with about(f"method.{kind}.grader"):
            service.jobs.check_grader(options["method"], options["hyperparameters"])
    return job_object(service.jobs.create(**options))


@router.get("", response_model=schemas.Page[schemas.Job])
def list_jobs(service: TheService, after: After = None, limit: Limit = 20) -> Any:
    return page([job_object(job) for job in service.jobs.list(after, limit + 1)], limit)


@router.get("/{job}", response_model=schemas.Job)
def get_job(job: str, service: TheService) -> Any:
    return job_object(service.jobs.get(job))


@router.post("/{job}/cancel", response_model=schemas.Job)
def cancel_job(job: str, service: TheService) -> Any:
    return job_object(service.jobs.cancel(job))


@router.post("/{job}/pause", response_model=schemas.Job)
def pause_job(job: str, service: TheService) -> Any:
    """Saved and set aside until it is resumed; the next in the queue gets its turn."""
    return job_object(service.jobs.pause(job))


@router.post("/{job}/resume", response_model=schemas.Job)
def resume_job(job: str, service: TheService) -> Any:
    return job_object(service.jobs.resume(job))


@router.get("/{job}/events", response_model=schemas.Page[schemas.JobEvent])
def list_events(job: str, service: TheService, after: After = None, limit: Limit = 20) -> Any:
    """The latest first, as in OpenAI's API."""
    return page(service.jobs.events(job, after, limit + 1), limit)


@router.get("/{job}/checkpoints", response_model=schemas.Page[schemas.Checkpoint])
def list_checkpoints(job: str, service: TheService, after: After = None, limit: Limit = 10) -> Any:
    """Measurements of the held-out loss; the best one becomes the adapter."""
    return page(service.jobs.checkpoints(job, after, limit + 1), limit)


def page(found: Sequence[Any], limit: int) -> dict[str, Any]:
    """The list object of OpenAI. found: one more than `limit`, if there are more."""
    return {"data": found[:limit], "has_more": len(found) > limit}


def job_object(job: Any) -> dict[str, Any]:
    """A job as OpenAI's API describes it."""
    config = job.config
    progress = job.progress or {}
    eta = progress.get("eta_s")
    kind = job.method["type"]
    objective, _ = objective_of(job.method)
    named = {"n_epochs": config["epochs"], "batch_size": config["batch_size"],
             "learning_rate_multiplier": _multiplier(job, objective)}
    beside = {name: value for name, value in job.method[kind].items() if name != "hyperparameters"}
    return {
        "id": job.id, "created_at": job.created_at, "started_at": job.started_at, "finished_at": job.finished_at,
        "estimated_finish": int(time.time() + eta) if eta is not None else None, "status": job.status,
        "origin": job.origin, "model": job.model, "fine_tuned_model": job.result, "training_file": job.training_file,
        "validation_file": job.validation_file, "suffix": job.suffix, "seed": job.seed,
        "hyperparameters": named,
        "method": {"type": kind, kind: {**beside, "hyperparameters": {**config, **shown(objective, job), **named}}},
        "metadata": job.metadata, "trained_tokens": job.trained_tokens, "error": job.error, "progress": job.progress,
        "result_files": job.result_files, "rounds": job.rounds or [],
        "report": f"/v1/fine_tuning/jobs/{job.id}/report" if job.report else None,
    }


def _multiplier(job: Any, objective: Objective) -> float:
    """The factor on the learning rate that the job would have had by default, which may be an adapter's."""
    asked = job.method[job.method["type"]]["hyperparameters"]
    if isinstance(asked.get("learning_rate_multiplier"), float | int):
        return float(asked["learning_rate_multiplier"])
    if not isinstance(asked.get("lr"), float | int):
        return 1.0
    return float(asked["lr"]) / peak_rate(TrainConfig(**objective.defaults), 0)
