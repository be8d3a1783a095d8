"""/v1/prompts: the prompts that the daemon keeps are listed, shown and deleted."""

from __future__ import annotations

from typing import Any, Literal

from fastapi import APIRouter
from pydantic import BaseModel, Field

from ...daemon.api.completions import TheService
from ...daemon.api.errors import RESPONSES, JsonRoute
from ...daemon.api.feedback import DeletedFeedback
from ...daemon.api.fine_tuning import After, Limit, page
from ...daemon.api.schemas import Page
from ...daemon.api.shapes import Answer, Id, Time
from ...daemon.service import Service
from .job import PROMPTS
from .prompts import KeptPrompt, prompts_of


class TutorDevice(BaseModel):
    """The prompts of a daemon."""

    keep_prompts: int = Field(description="Prompts that are kept at most; 0: none.")


class PromptObject(Answer):
    """A kept prompt."""

    id: Id
    object: Literal["prompt"] = "prompt"
    created_at: Time
    question: str = Field(description="The last question; in lists its first 300 characters.")
    job: str | None = Field(description="The job that asked it again.")


class WholePrompt(PromptObject):
    """A kept prompt with its row."""

    row: dict[str, Any] = Field(description="What is kept: messages, or a prompt, and no answer.")


class PromptPage(Page[PromptObject]):
    """A list of prompts, the newest first."""

    counts: dict[str, int] = Field(description="kept; new: no job has taken them; most: --keep-prompts.")


class DeletedPrompts(Answer):
    """The number of prompts that were deleted, and what remains of them."""

    object: Literal["list"] = "list"
    count: int = Field(description="Prompts that were deleted.")
    remains: str = Field(description="The job that may still ask them, in a sentence; empty: none.")


router = APIRouter(route_class=JsonRoute, responses=RESPONSES)


@router.get("/v1/prompts", response_model=PromptPage)
def list_prompts(service: TheService, after: After = None, limit: Limit = 100) -> Any:
    """Lists the kept prompts, the newest first, with their beginnings."""
    prompts = prompts_of(service)
    found = [_prompt(prompt) for prompt in prompts.list(after, limit + 1)]
    return {**page(found, limit), "counts": prompts.counts()}


@router.get("/v1/prompts/{prompt_id}", response_model=WholePrompt)
def get_prompt(prompt_id: str, service: TheService) -> Any:
    """Returns a kept prompt, whole."""
    return _prompt(prompts_of(service).get(prompt_id))


@router.delete("/v1/prompts", response_model=DeletedPrompts)
def delete_prompts(service: TheService) -> Any:
    """Deletes all kept prompts for good."""
    return {"count": prompts_of(service).clear(), "remains": _remains(service)}


@router.delete("/v1/prompts/{prompt_id}", response_model=DeletedFeedback)
def delete_prompt(prompt_id: str, service: TheService) -> Any:
    """Deletes a kept prompt for good: no job that begins later asks it."""
    prompts_of(service).delete(prompt_id)
    return {"id": prompt_id, "object": "prompt", "remains": _remains(service)}


def _remains(service: Service) -> str:
    """Says which job still uses deleted prompts; "": none."""
    job = service.learner.unfinished(PROMPTS)
    return f"{job} is not finished and may ask them yet; cancel it to be rid of them at once" if job else ""


def _prompt(prompt: KeptPrompt) -> dict[str, Any]:
    return {**vars(prompt), "question": prompt.asked}
