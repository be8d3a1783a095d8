"""/v1/classify, in vLLM's shape: the label of each text, and the probabilities of all labels, by an encoder."""

from __future__ import annotations

import asyncio
import secrets
import time
from collections.abc import Sequence
from typing import Annotated, Any, Literal

import numpy as np
from fastapi import APIRouter, Request
from pydantic import Field

from ...serving.completion import Completion
from ...serving.encoder_model import TOGETHER
from ..keys import KeyScope
from ..service import Service
from .asking import note_ignored
from .completions import TheService
from .embeddings import TEXTS
from .errors import RESPONSES, JsonRoute
from .pools import Pools, ThePools
from .security import needs
from .shapes import Answer, Body, Id, Time

router = APIRouter(route_class=JsonRoute, responses=RESPONSES)


class ClassifyRequest(Body):
    """Texts to classify."""

    input: str | Annotated[list[str], Field(min_length=1, max_length=TEXTS)] = Field(description="A text, or a list of "
                                                                                     "them.")
    model: str | None = Field(None, description="An adapter, or NAME:latest: the active adapter, as without.")
    user: str | None = Field(None, description="Not used, nor kept.")


class Classification(Answer):
    """The answer to a text."""

    index: int = Field(description="The text's place in the input, from 0.")
    label: str = Field(description="The likeliest label; JSON where the adapter learned JSON.")
    probs: list[float] = Field(description="The probability of each of `labels`; of JSON only its own.")
    num_classes: int = Field(description="The number of probs.")


class ClassifyUsage(Answer):
    """Tokens of all texts."""

    prompt_tokens: int = Field(description="Tokens of all texts.")
    completion_tokens: int = Field(0, description="Always 0: no text is written.")
    total_tokens: int = Field(description="Tokens of all texts.")


class ClassificationList(Answer):
    """The answers."""

    id: Id
    object: Literal["list"] = "list"
    created: Time
    model: str = Field(description="The adapter that answered.")
    labels: list[str] = Field(description="The labels that the adapter knows; none where it learned JSON.")
    data: list[Classification] = Field(description="An answer for each text, in their order.")
    usage: ClassifyUsage = Field(description="What it took.")


@router.post("/v1/classify", response_model=ClassificationList)
@needs(KeyScope.ANSWER)
async def classify(body: ClassifyRequest, request: Request, service: TheService, pools: ThePools) -> Any:
    """Returns the label of each text and the probabilities of all labels, by an encoder; a model that writes text is
    refused. The adapter answers for itself: no correction is recalled.
    """
    note_ignored(request, ["user"] if body.user is not None else [])
    texts = [body.input] if isinstance(body.input, str) else body.input
    labels: Sequence[str] = ()
    found: list[tuple[Completion, str]] = []
    for begin in range(0, len(texts), TOGETHER):
        labels, some = await _answered(service, pools, texts[begin:begin + TOGETHER], body.model or "")
        found += some
    tokens = sum(one.prompt_tokens for one, _ in found)
    return {"id": f"classify-{secrets.token_hex(12)}", "created": int(time.time()), "model": found[0][0].adapter,
            "labels": labels, "data": [{"index": i, "label": label, "probs": probs, "num_classes": len(probs)}
                                       for i, (one, label) in enumerate(found)
                                       for probs in [np.exp(one.among)[:len(labels) or None].tolist()]],
            "usage": {"prompt_tokens": tokens, "total_tokens": tokens}}


async def _answered(service: Service, pools: Pools, texts: Sequence[str],
                    model: str) -> tuple[Sequence[str], list[tuple[Completion, str]]]:
    """The labels, and the answers with their texts when they are there. Raises the error of one."""
    loop = asyncio.get_running_loop()
    ended: asyncio.Queue[None] = asyncio.Queue()

    def note(_completion: Completion, piece: str | None) -> None:  # on the batcher's thread
        if piece is None:
            loop.call_soon_threadsafe(ended.put_nowait, None)

    labels, found = await pools.take(lambda: service.classify(texts, model, note))
    for _ in found:
        await ended.get()
    return labels, [(one, one.text()) for one in found]
