"""Ollama's /api/embed: vectors of texts."""

from __future__ import annotations

import time
from typing import Annotated, Any

from fastapi import APIRouter, Request
from pydantic import Field

from .asking import note_ignored
from .completions import TheService
from .embeddings import TEXTS, check_dimensions, vectors_of
from .ollama import ERRORS, AnyTypeRoute
from .ollama_bodies import NOT_USED, Options, named
from .shapes import Answer, Body, Whole

router = APIRouter(route_class=AnyTypeRoute, responses=ERRORS)


class EmbedBody(Body):
    model: str = Field(min_length=1, description="The base, or the file of --embeddings, with or without :latest.")
    input: str | Annotated[list[str], Field(max_length=TEXTS)] = Field(
        description="A text, or a list of them; where there is none the answer has no vectors.")
    truncate: bool | None = Field(None, description="Cut a text that is too long, which is the default; false: refuse "
                                                    "it.")
    dimensions: Whole | None = Field(None, description="All that the model has: vectors are not cut.")
    options: Options | None = Field(None, description=NOT_USED + "none of them changes a vector.")
    keep_alive: float | str | None = Field(None, description=NOT_USED + "the model stays loaded.")

    def texts(self) -> list[str]:
        if isinstance(self.input, str):
            return [self.input] if self.input else []
        return self.input

    def ignored(self) -> list[str]:
        """The options that are given and have no effect."""
        given = self.options.model_dump(exclude_none=True) if self.options else {}
        return [*(f"options.{name}" for name in given), *(["keep_alive"] if self.keep_alive is not None else [])]


class EmbedAnswer(Answer):
    """Durations are in nanoseconds."""

    model: str
    embeddings: list[list[float]]
    total_duration: int
    load_duration: int = 0
    prompt_eval_count: int


@router.post("/api/embed", response_model=EmbedAnswer)
async def ollama_embed(body: EmbedBody, request: Request, service: TheService) -> Any:
    """Vectors of length 1, as /v1/embeddings has them."""
    began = time.monotonic_ns()
    note_ignored(request, body.ignored())
    model = named(service, body.model)
    check_dimensions(service, model, body.dimensions)
    parts = await vectors_of(body.texts(), model, request, truncate=body.truncate is not False)
    return {"model": body.model, "embeddings": [vector.tolist() for part in parts for vector in part.vectors],
            "total_duration": time.monotonic_ns() - began, "prompt_eval_count": sum(part.tokens for part in parts)}
