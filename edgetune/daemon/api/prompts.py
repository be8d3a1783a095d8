"""/v1/prompts: lists, shows and deletes the prompts that the daemon keeps."""

from __future__ import annotations

from typing import Any

from fastapi import APIRouter

from ..kinds.tutor import PROMPTS
from ..learning.prompts import KeptPrompt
from ..service import Service
from . import schemas
from .completions import TheService
from .errors import JsonRoute
from .fine_tuning import After, Limit, page

router = APIRouter(prefix="/v1/prompts", route_class=JsonRoute)


@router.get("", response_model=schemas.PromptPage)
def list_prompts(service: TheService, after: After = None, limit: Limit = 100) -> Any:
    """The newest first; of each the beginning."""
    found = [_heading(prompt) for prompt in service.prompts.list(after, limit + 1)]
    return {**page(found, limit), "counts": service.prompts.counts()}


@router.get("/{prompt_id}", response_model=schemas.WholePrompt)
def get_prompt(prompt_id: str, service: TheService) -> Any:
    found = service.prompts.get(prompt_id)
    return {**_heading(found), "row": found.row}


@router.delete("", response_model=schemas.DeletedPrompts)
def delete_prompts(service: TheService) -> Any:
    """All of them, for good."""
    return {"count": service.prompts.clear(), "remains": _remains(service)}


@router.delete("/{prompt_id}", response_model=schemas.DeletedFeedback)
def delete_prompt(prompt_id: str, service: TheService) -> Any:
    """Deletes a prompt for good: no training that begins later asks it."""
    service.prompts.delete(prompt_id)
    return {"id": prompt_id, "object": "prompt", "remains": _remains(service)}


def _remains(service: Service) -> str:
    """Says which job still uses deleted prompts; "": none."""
    job = service.learner.unfinished(PROMPTS)
    return f"{job} is not finished and may ask them yet; cancel it to be rid of them at once" if job else ""


def _heading(prompt: KeptPrompt) -> dict[str, Any]:
    return {"id": prompt.id, "created_at": prompt.created_at, "question": prompt.asked, "job": prompt.job}
