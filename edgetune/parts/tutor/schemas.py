"""Schemas of kept prompts, and what the tutor adds to the answer of /v1/device."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import BaseModel, Field

from ...daemon.api.schemas import Page
from ...daemon.api.shapes import Answer, Id, Time


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
