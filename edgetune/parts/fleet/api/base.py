"""/v1/base: another base in the daemon's slot, evaluated before a roll-out lets the daemon answer with it."""

from __future__ import annotations

from typing import Any, Literal

from fastapi import APIRouter
from pydantic import Field

from ....daemon.api import schemas
from ....daemon.api.completions import TheService
from ....daemon.api.errors import RESPONSES, JsonRoute
from ....daemon.api.fine_tuning import job_object
from ....daemon.api.shapes import Body
from ..bases.job import BaseRequest, begin_base_evaluation

router = APIRouter(route_class=JsonRoute, responses=RESPONSES)


class BaseEvaluation(Body):
    """Options of the evaluation of a base."""

    base: str = Field(description="sha256 of the base that is meant.")
    required: Literal["better", "not-worse"] = Field(
        "better", description="better: surely better than the present one; not-worse: not surely worse.")
    if_none: Literal["refuse", "canary"] = Field(
        "refuse", description="If fewer than 4 questions are held out. canary: only unrelated text decides.")


@router.post("/v1/base/evaluate", response_model=schemas.Job)
def evaluate_base(body: BaseEvaluation, service: TheService) -> Any:
    """Begins a job in which the gate evaluates the base in the other side of the daemon's slot, with the adapter that
    comes with it, compared with the present one and its active adapter. The verdict is in the last event of the job.
    Nothing becomes active.
    """
    return job_object(begin_base_evaluation(service, BaseRequest(**body.model_dump())))
