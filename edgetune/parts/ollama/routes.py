"""Ollama's /api/chat and /api/generate: lines of JSON while the answer is made, or one when it is whole; /api/embed and
the older /api/embeddings.
"""

from __future__ import annotations

import json
import time
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timezone
from typing import Any

from fastapi import APIRouter, Request, Response
from starlette.responses import StreamingResponse

from ...daemon.api.asking import AnswerStream, PendingQuestions, note_ignored
from ...daemon.api.completions import TheService, chat_logprobs
from ...daemon.api.embeddings import check_dimensions, vectors_of
from ...daemon.api.errors import STATUSES, JsonRoute, status_and_body
from ...daemon.api.security import needs
from ...daemon.keys import KeyScope
from ...daemon.service import Service
from ...serving.completion import TokenLogprob
from ...serving.tool_calls import CallPiece, WholeCall, join
from .bodies import (
    ChatAnswer,
    ChatBody,
    EmbedAnswer,
    EmbedBody,
    GenerateAnswer,
    GenerateBody,
    OlderEmbedAnswer,
    OlderEmbedBody,
    PlainError,
    named,
    plain_error,
)

LINES = "application/x-ndjson"
ERRORS: dict[int | str, dict[str, Any]] = {
    status: {"model": PlainError, "description": what} for status, what in STATUSES.items()}
_STREAM: dict[int | str, dict[str, Any]] = {
    200: {"description": "The answer; without stream false lines of its pieces, the last one with done.",
          "content": {LINES: {}}}}


class AnyTypeRoute(JsonRoute):
    """Reads a body as JSON with any Content-Type: curl -d declares a form."""

    def get_route_handler(self) -> Callable[[Request], Any]:
        handler = super().get_route_handler()

        async def typed(request: Request) -> Response:
            headers = [pair for pair in request.scope["headers"] if pair[0] != b"content-type"]
            scope = {**request.scope, "headers": [*headers, (b"content-type", b"application/json")]}
            answered: Response = await handler(Request(scope, request.receive))
            return answered

        return typed


router = APIRouter(route_class=AnyTypeRoute, responses=ERRORS)


@router.post("/api/chat", response_model=ChatAnswer, response_model_exclude_none=True, responses=_STREAM)
@needs(KeyScope.ANSWER)
async def ollama_chat(body: ChatBody, request: Request, response: Response, service: TheService) -> Any:
    """Answers a conversation, as Ollama does."""
    return await _reply(body, request, response, service, _message)


@router.post("/api/generate", response_model=GenerateAnswer, response_model_exclude_none=True, responses=_STREAM)
@needs(KeyScope.ANSWER)
async def ollama_generate(body: GenerateBody, request: Request, response: Response, service: TheService) -> Any:
    """Answers a prompt in the model's chat template or, raw, continues it."""
    return await _reply(body, request, response, service, _response)


@router.post("/api/embed", response_model=EmbedAnswer)
@needs(KeyScope.ANSWER)
async def ollama_embed(body: EmbedBody, request: Request, service: TheService) -> Any:
    """Returns a vector of length 1 for each text, as /v1/embeddings does."""
    times = _Times()
    note_ignored(request, body.ignored())
    model = named(service, body.model)
    check_dimensions(service, model, body.dimensions)
    texts = [body.input] if isinstance(body.input, str) else body.input
    parts = await vectors_of(texts if body.input else [], model, request, truncate=body.truncate is not False)
    return {"model": body.model, "embeddings": [vector.tolist() for part in parts for vector in part.vectors],
            "total_duration": time.monotonic_ns() - times.begin,
            "prompt_eval_count": sum(part.tokens for part in parts)}


@router.post("/api/embeddings", response_model=OlderEmbedAnswer)
@needs(KeyScope.ANSWER)
async def ollama_embeddings(body: OlderEmbedBody, request: Request, service: TheService) -> Any:
    """Returns a vector of length 1, as clients before /api/embed ask for it."""
    note_ignored(request, body.ignored())
    parts = await vectors_of([body.prompt] if body.prompt else [], named(service, body.model), request, truncate=True)
    return {"embedding": [number for part in parts for vector in part.vectors for number in vector.tolist()]}


Part = Callable[[str, Sequence[WholeCall], str], dict[str, Any]]


async def _reply(body: ChatBody | GenerateBody, request: Request, response: Response, service: Service,
                 part: Part) -> Any:
    note_ignored(request, body.ignored())
    if not body.asks:
        service.adapter_for(named(service, body.model))
        loaded = {**_head(body.model), **part("", (), ""), "done": True, "done_reason": _loaded(body.keep_alive)}
        return loaded if body.stream is False else StreamingResponse(iter([_line(loaded)]), media_type=LINES)
    times = _Times()
    asked = await PendingQuestions.begin([body.asked(service)], request, "ollama-")
    remembers = isinstance(body, GenerateBody) and not body.raw
    if body.stream is not False:
        return AnswerStream(_lines(asked, body.model, part, times, remembers), asked, LINES)
    response.headers.update(asked.headers)
    said, = await asked.whole(request)
    times.first = times.first or time.monotonic_ns()
    return {**_head(body.model), **part(said.text, said.calls, said.thinking), **_measured(said.logprobs),
            **_end(asked, said.finish, times, remembers)}


async def _lines(asked: PendingQuestions, model: str, part: Part, times: _Times, remembers: bool) -> AsyncIterator[str]:
    calls: list[CallPiece] = []
    try:
        async for piece in asked.pieces():
            times.first = times.first or time.monotonic_ns()
            calls += piece.calls
            if piece.text or piece.thinking or piece.logprobs:
                yield _line({**_head(model), **part(piece.text, (), piece.thinking), **_measured(piece.logprobs),
                             "done": False})
            if piece.finish:
                if calls:
                    yield _line({**_head(model), **part("", join(calls), ""), "done": False})
                yield _line({**_head(model), **part("", (), ""), **_end(asked, piece.finish, times, remembers)})
    except Exception as error:  # the head is sent already, and with it the status
        yield _line(plain_error(status_and_body(error)[1]))


# ---- parts of a line ------------------------------------------------------------------------------------------------


@dataclass
class _Times:
    """Times in nanoseconds of the monotonic clock. first: when the first piece came; 0: not yet."""

    begin: int = field(default_factory=time.monotonic_ns)
    first: int = 0


def _head(model: str) -> dict[str, Any]:
    return {"model": model, "created_at": datetime.now(timezone.utc).isoformat().replace("+00:00", "Z")}


def _response(text: str, _calls: Sequence[WholeCall], thinking: str) -> dict[str, Any]:
    return {"response": text, **({"thinking": thinking} if thinking else {})}


def _message(text: str, calls: Sequence[WholeCall], thinking: str) -> dict[str, Any]:
    message: dict[str, Any] = {"role": "assistant", "content": text}
    if thinking:
        message["thinking"] = thinking
    if calls:
        message["tool_calls"] = [{"function": {"name": call.name, "arguments": _arguments(call)}} for call in calls]
    return {"message": message}


def _arguments(call: WholeCall) -> dict[str, Any]:
    """Empty where the answer ended within them."""
    try:
        found = json.loads(call.arguments)
    except (ValueError, RecursionError):
        return {}
    return found if isinstance(found, dict) else {}


def _measured(logprobs: Sequence[TokenLogprob]) -> dict[str, Any]:
    return {"logprobs": chat_logprobs(logprobs)["content"]} if logprobs else {}


def _end(asked: PendingQuestions, finish: str, times: _Times, remembers: bool) -> dict[str, Any]:
    """What the last line says. remembers: it has the tokens of the conversation."""
    now = time.monotonic_ns()
    context = {"context": asked.context} if remembers else {}
    return {**context, **asked.cited, "done": True, "done_reason": "length" if finish == "length" else "stop",
            "total_duration": now - times.begin, "load_duration": 0,
            "prompt_eval_count": asked.prompt_tokens, "prompt_eval_duration": times.first - times.begin,
            "eval_count": asked.completion_tokens, "eval_duration": now - times.first}


def _loaded(keep_alive: float | str | None) -> str:
    """The done_reason for a client that only wants the model loaded, or unloaded, which is not done."""
    return "unload" if keep_alive in (0, "0", "0s") else "load"


def _line(fields: dict[str, Any]) -> str:
    return json.dumps(fields, ensure_ascii=False) + "\n"
