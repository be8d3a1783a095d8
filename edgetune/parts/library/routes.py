"""Gives an adapter the questions by which it is chosen, and takes them."""

from __future__ import annotations

from typing import Any

from fastapi import APIRouter
from pydantic import Field

from ...daemon.api import schemas
from ...daemon.api.adapters import AnAdapter, adapter_object
from ...daemon.api.completions import TheService
from ...daemon.api.errors import RESPONSES, JsonRoute
from ...daemon.api.shapes import Body
from .library import library_of

PATH = "/v1/adapters/{adapter}/questions"
router = APIRouter(route_class=JsonRoute, responses=RESPONSES)


class TaskQuestions(Body):
    """Rows of which an adapter gets its questions."""

    file: str | None = Field(None, description="The id of a file of rows [that of the job that made the adapter].")


@router.post(PATH, response_model=schemas.AdapterObject)
def give_questions(adapter: AnAdapter, body: TaskQuestions, service: TheService) -> Any:
    """Lets NAME:auto choose an adapter for questions like those of a file of rows. Only their vectors are kept."""
    found = service.adapters.get(adapter)
    library_of(service).add(found.id, service.files.rows(body.file or service.file_of(found)))
    return adapter_object(found, service)


@router.delete(PATH, response_model=schemas.AdapterObject)
def take_questions(adapter: AnAdapter, service: TheService) -> Any:
    """Lets NAME:auto choose an adapter no longer."""
    library_of(service).remove(adapter)
    return adapter_object(service.adapters.get(adapter), service)
