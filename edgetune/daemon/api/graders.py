"""/v1/fine_tuning/alpha/graders: a grader checked, and tried on one answer, before a job is trained by it."""

from __future__ import annotations

from typing import Any

from fastapi import APIRouter

from . import schemas
from .completions import TheService
from .errors import JsonRoute, about

router = APIRouter(prefix="/v1/fine_tuning/alpha/graders", route_class=JsonRoute)


@router.post("/validate", response_model=schemas.ValidGrader)
def validate_grader(body: schemas.GraderRequest, service: TheService) -> Any:
    """The grader, if it is one that can be used here; a score_model can be run, and is refused for training."""
    with about("grader"):
        service.grading.read(body.grader)
    return {"grader": body.grader}


@router.post("/run", response_model=schemas.GradeObject)
def run_grader(body: schemas.GradeRequest, service: TheService) -> Any:
    """Returns the reward of an answer. A score_model is the base itself."""
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
