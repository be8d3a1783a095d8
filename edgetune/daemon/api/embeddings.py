"""OpenAI's /v1/embeddings."""

from __future__ import annotations

import asyncio
import threading
from base64 import b64encode
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Annotated, Any, Literal

import numpy as np
from fastapi import APIRouter, Request
from pydantic import Field

from ...errors import UsageError
from .asking import note_ignored
from .completions import TheService
from .errors import JsonRoute
from .pools import ThePools
from .shapes import Answer, Body, Whole

TEXTS = 2048  # of a request, as OpenAI has it
TOGETHER = 16  # texts until others have a turn
router = APIRouter(route_class=JsonRoute)
Tokens = Annotated[list[Whole], Field(min_length=1)]


class EmbeddingRequest(Body):
    input: (str | Annotated[list[str], Field(min_length=1, max_length=TEXTS)] | Tokens
            | Annotated[list[Tokens], Field(min_length=1, max_length=TEXTS)]) = Field(
        description="A text, token ids, or a list of either.")
    model: str | None = Field(None, description="The base, or the file of --embeddings, which answers without a name.")
    encoding_format: Literal["float", "base64"] | None = Field(None, description="base64: of float32, the lowest byte "
                                                               "first.")
    dimensions: Whole | None = Field(None, description="All that the model has: vectors are not cut.")
    user: str | None = Field(None, description="Not used, nor kept.")

    def texts(self) -> list[str | list[int]]:
        if isinstance(self.input, str) or isinstance(self.input[0], int):
            return [self.input]
        return [*self.input]


class Embedding(Answer):
    object: Literal["embedding"] = "embedding"
    index: int
    embedding: list[float] | str


class EmbeddingUsage(Answer):
    prompt_tokens: int
    total_tokens: int


class EmbeddingList(Answer):
    object: Literal["list"] = "list"
    data: list[Embedding]
    model: str = Field(description="Whose vectors they are.")
    usage: EmbeddingUsage


@router.post("/v1/embeddings", response_model=EmbeddingList)
async def embeddings(body: EmbeddingRequest, request: Request, service: TheService, pools: ThePools) -> Any:
    """Vectors of length 1: the mean of the model's hidden states, or what the file of --embeddings was trained for."""
    note_ignored(request, ["user"] if body.user is not None else [])
    made = service.embeddings
    model = body.model or ""
    texts = body.texts()
    width = made.width(model)
    if body.dimensions not in (None, width):
        raise UsageError(f"dimensions is {body.dimensions}, vectors have {width} here", "leave it out")
    data: list[dict[str, Any]] = []
    tokens = 0
    with made.place():
        async with _until_gone(request) as cancelled:
            for start in range(0, len(texts), TOGETHER):
                part = texts[start : start + TOGETHER]
                found = await pools.embed(lambda part=part: made.embed(part, model, cancelled))  # type: ignore[misc]
                data += [{"index": start + i, "embedding": _written(vector, body.encoding_format)}
                         for i, vector in enumerate(found.vectors)]
                tokens += found.tokens
    return {"data": data, "model": found.model, "usage": {"prompt_tokens": tokens, "total_tokens": tokens}}


def _written(vector: np.ndarray[Any, np.dtype[np.float32]], form: str | None) -> list[float] | str:
    return b64encode(vector.astype("<f4").tobytes()).decode() if form == "base64" else vector.tolist()


@asynccontextmanager
async def _until_gone(request: Request) -> AsyncIterator[threading.Event]:
    """What is set when the client is gone."""
    gone = threading.Event()

    async def watch() -> None:
        while (await request.receive())["type"] != "http.disconnect":
            pass
        gone.set()

    watcher = asyncio.create_task(watch())
    try:
        yield gone
    finally:
        gone.set()
        watcher.cancel()
