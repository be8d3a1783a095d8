"""/v1/drawn: the questions that were drawn from all that people asked, those that nobody rated, and their deletion."""

from __future__ import annotations

from typing import Any

from fastapi import APIRouter

from . import feedback_bodies as bodies
from .completions import TheService
from .errors import RESPONSES, JsonRoute
from .fine_tuning import Limit

router = APIRouter(route_class=JsonRoute, responses=RESPONSES)


@router.get("/v1/drawn", response_model=bodies.DrawnList)
def list_drawn(service: TheService, limit: Limit = 100) -> Any:
    """Lists drawn questions that nobody rated, the newest first. The test of a new adapter takes the active adapter's
    answers to them for right ones: feedback on them says what is right.
    """
    return {"data": service.traffic.unrated(limit), "counts": service.traffic.facts()}


@router.delete("/v1/drawn", response_model=bodies.DeletedDrawn)
def delete_drawn(service: TheService) -> Any:
    """Deletes all drawn questions for good. They stay held out, by their digests."""
    return {"count": service.traffic.clear()}
