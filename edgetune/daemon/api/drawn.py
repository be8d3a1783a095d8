"""/v1/drawn: the questions that were drawn from all that people asked: listed, rated and deleted."""

from __future__ import annotations

from typing import Any

from fastapi import APIRouter, Request

from . import feedback_bodies as bodies
from .completions import TheService
from .errors import RESPONSES, JsonRoute
from .feedback import given, heading_object
from .fine_tuning import Limit

router = APIRouter(route_class=JsonRoute, responses=RESPONSES)


@router.get("/v1/drawn", response_model=bodies.DrawnList)
def list_drawn(service: TheService, limit: Limit = 100) -> Any:
    """Lists drawn questions whose answers nobody rated, in the order in which they are to be rated."""
    return {"data": service.traffic.unrated(limit), "counts": service.traffic.facts()}


@router.post("/v1/drawn", response_model=bodies.FeedbackObject)
def rate_drawn(body: bodies.FeedbackRequest, request: Request, service: TheService) -> Any:
    """Rates an answer to the first question of that list that somebody can rate, as feedback. Those before it, which
    nobody can rate, count as answered right; those after it, which nobody was asked about, do not count.
    """
    item = service.feedback.add(**given(body, request))
    service.traffic.check(item.question)
    return heading_object(item.heading)


@router.delete("/v1/drawn", response_model=bodies.DeletedDrawn)
def delete_drawn(service: TheService) -> Any:
    """Deletes all drawn questions for good. They stay held out, by their digests."""
    return {"count": service.traffic.clear()}
