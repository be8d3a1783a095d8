"""OpenAI's /v1/embeddings, and the common parts of all calls for vectors."""

from __future__ import annotations

import threading
from base64 import b64encode
from collections.abc import Sequence
from typing import Annotated, Any, Literal

from fastapi import APIRouter, Request
from pydantic import Field

from ...errors import UsageError
from ..embeddings import Embedded, Text
from ..keys import KeyScope
from ..service import Service
from .asking import calling_when_gone, note_ignored
from .completions import TheService
from .errors import RESPONSES, JsonRoute
from .pools import Pools
from .security import needs
from .shapes import Answer, Body, Whole

TEXTS = 2048  # of a request, as OpenAI has it
TOGETHER = 16  # texts until others have a turn
router = APIRouter(route_class=JsonRoute, responses=RESPONSES)
Tokens = Annotated[list[Whole], Field(min_length=1)]


class EmbeddingRequest(Body):
    """Texts to turn into vectors."""

    input: (str | Annotated[list[str], Field(min_length=1, max_length=TEXTS)] | Tokens
            | Annotated[list[Tokens], Field(min_length=1, max_length=TEXTS)]) = Field(
        description="A text, token ids, or a list of either.")
    model: str | None = Field(None, description="The base, or the file of --embeddings, which answers without a name.")
    encoding_format: Literal["float", "base64"] | None = Field(None, description="base64: of float32, the lowest byte "
                                                               "first.")
    dimensions: Whole | None = Field(None, description="The width that the model has: vectors are not cut.")
    user: str | None = Field(None, description="Not used, nor kept.")

    def texts(self) -> list[Text]:
        if isinstance(self.input, str) or isinstance(self.input[0], int):
            return [self.input]
        return [*self.input]


class Embedding(Answer):
    """The vector of a text."""

    object: Literal["embedding"] = "embedding"
    index: int = Field(description="The text's place in the input, from 0.")
    embedding: list[float] | str = Field(description="The vector: numbers, or base64.")


class EmbeddingUsage(Answer):
    """Tokens of all texts."""

    prompt_tokens: int = Field(description="Tokens of all texts.")
    total_tokens: int = Field(description="The same.")


class EmbeddingList(Answer):
    """The vectors."""

    object: Literal["list"] = "list"
    data: list[Embedding] = Field(description="A vector for each text, in their order.")
    model: str = Field(description="The model that made them.")
    usage: EmbeddingUsage = Field(description="What it took.")


@router.post("/v1/embeddings", response_model=EmbeddingList)
@needs(KeyScope.ANSWER)
async def embeddings(body: EmbeddingRequest, request: Request, service: TheService) -> Any:
    """Returns a vector of length 1 for each text: the mean of the model's hidden states, or what --embeddings makes."""
    note_ignored(request, ["user"] if body.user is not None else [])
    model = service.spelled(body.model or "")
    check_dimensions(service, model, body.dimensions)
    parts = await vectors_of(body.texts(), model, request)
    vectors = (vector for part in parts for vector in part.vectors)
    as_base64 = body.encoding_format == "base64"
    data = [{"index": i, "embedding": b64encode(vector.astype("<f4").tobytes()).decode() if as_base64
             else vector.tolist()} for i, vector in enumerate(vectors)]
    tokens = sum(part.tokens for part in parts)
    return {"data": data, "model": parts[0].model, "usage": {"prompt_tokens": tokens, "total_tokens": tokens}}


def check_dimensions(service: Service, model: str, asked: int | None) -> None:
    """Raises UsageError for another width than the vectors have, NotFoundError for a model that makes none."""
    width = service.embeddings.width(model)
    if asked not in (None, width):
        raise UsageError(f"dimensions is {asked}, vectors have {width} here", "leave it out")


async def vectors_of(texts: Sequence[Text], model: str, request: Request, truncate: bool = False) -> list[Embedded]:
    """The vectors of texts, some at a time, until the client is gone. Errors are those of Embeddings."""
    made = request.app.state.service.embeddings
    pools: Pools = request.app.state.pools
    parts: list[Embedded] = []
    gone = threading.Event()
    with made.places.taken():
        try:
            async with calling_when_gone(gone.set, request):
                for start in range(0, len(texts), TOGETHER):
                    part = texts[start : start + TOGETHER]
                    parts.append(await pools.embed(
                        lambda part=part: made.embed(part, model, gone, truncate)))  # type: ignore[misc]
        finally:
            gone.set()
    return parts
