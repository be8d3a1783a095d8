"""Documents ranked by a question, in the shape that llama-server, Jina and others share."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Any, Literal

import numpy as np
from fastapi import APIRouter, Request
from numpy.typing import NDArray
from pydantic import Field

from ...daemon.api.completions import TheService
from ...daemon.api.embeddings import TEXTS, TOGETHER, EmbeddingUsage, vectors_of
from ...daemon.api.errors import RESPONSES, JsonRoute
from ...daemon.api.pools import Pools
from ...daemon.api.security import needs
from ...daemon.api.shapes import Answer, Body, Whole
from ...daemon.keys import KeyScope
from ...daemon.service import Service
from ...errors import NotFoundError, UsageError
from .running import documents_of

OTHER_PATHS = ("/rerank", "/v1/reranking", "/reranking")  # llama-server's
router = APIRouter(route_class=JsonRoute, responses=RESPONSES)


class Document(Body):
    """A document as an object."""

    text: str = Field(description="Its text.")


class RerankRequest(Body):
    """A question, and documents to rank by it."""

    query: str = Field(min_length=1, description="The question.")
    documents: list[str | Document] = Field(min_length=1, max_length=TEXTS - 1, description="Texts. What is too long "
                                            "for the encoder is cut.")
    top_n: Annotated[Whole, Field(ge=1)] | None = Field(None, description="Documents of the answer at most [all].")
    return_documents: bool | None = Field(None, description="true: the answer has their texts [false].")
    model: str | None = Field(None, description="The encoder, which answers without a name.")


class Ranked(Answer):
    """A document and how well it fits."""

    index: int = Field(description="Its place in documents, from 0.")
    relevance_score: float = Field(description="The cosine of its vector and the question's.")
    document: Document | None = Field(None, description="Its text, if that was asked for.")


class Ranking(Answer):
    """The documents, the best first."""

    object: Literal["list"] = "list"
    model: str = Field(description="The encoder that made the vectors.")
    results: list[Ranked] = Field(description="The best documents, in this order.")
    usage: EmbeddingUsage = Field(description="What it took.")


@router.post("/v1/rerank", response_model=Ranking, response_model_exclude_none=True)
@needs(KeyScope.ANSWER)
async def rerank(body: RerankRequest, request: Request, service: TheService) -> Any:
    """Ranks documents by a question: by the vectors of --embeddings, of a model that is an encoder, or of the encoder
    of documents. /rerank, /v1/reranking and /reranking do the same.
    """
    texts = [document if isinstance(document, str) else document.text for document in body.documents]
    model, vectors, tokens = await _encoded([body.query, *texts], service.spelled(body.model or ""), service, request)
    scores = vectors[1:] @ vectors[0]
    best = np.argsort(-scores, kind="stable")[: body.top_n]
    shown = [{"document": {"text": texts[place]}} if body.return_documents else {} for place in best]
    return {"model": model, "usage": {"prompt_tokens": tokens, "total_tokens": tokens},
            "results": [{"index": int(place), "relevance_score": float(scores[place]), **document}
                        for place, document in zip(best, shown, strict=True)]}


for path in OTHER_PATHS:
    router.post(path, response_model=Ranking, response_model_exclude_none=True, include_in_schema=False)(rerank)


async def _encoded(texts: Sequence[str], model: str, service: Service,
                   request: Request) -> tuple[str, NDArray[np.float32], int]:
    """(the encoder's name, vectors [n, D] of length 1, their tokens). Raises UsageError if there is no encoder or a
    text is empty, and NotFoundError if none has this name.
    """
    if service.embeddings.encoder or not service.served.writes:
        if service.embeddings.encoder and model not in ("", service.embeddings.name):
            raise _no_ranking(model, service.embeddings.name)
        parts = await vectors_of(texts, model, request, truncate=True)
        return parts[0].model, np.concatenate([part.vectors for part in parts]), sum(part.tokens for part in parts)
    try:
        encoding = documents_of(service).stores.encoder()
    except NotFoundError:
        raise UsageError("no encoder is here, by whose vectors documents could be ranked",
                         "start the daemon with --embeddings, or edgetune pull minilm") from None
    if model not in ("", encoding.name):
        raise _no_ranking(model, encoding.name)
    pools: Pools = request.app.state.pools
    made = [await pools.embed(lambda at=at: encoding.vectors(texts[at : at + TOGETHER]))  # type: ignore[misc]
            for at in range(0, len(texts), TOGETHER)]
    vectors = np.concatenate(made).astype(np.float32)
    lengths = np.linalg.norm(vectors, axis=1, keepdims=True)
    return encoding.name, vectors / np.maximum(lengths, 1), sum(map(encoding.count, texts))


def _no_ranking(model: str, encoder: str) -> NotFoundError:
    return NotFoundError(f"{model!r:.200} ranks no documents", f"ask {encoder}, or name none")
