"""Chat and completions: whole answers, or server-sent events while they are made. A client that leaves cancels them."""

from __future__ import annotations

import codecs
import json
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import dataclass, replace
from typing import Annotated, Any

from fastapi import APIRouter, Depends, Request
from starlette.responses import Response

from ...serving.completion import TokenLogprob
from ...serving.question import Question
from ...serving.tool_calls import CallPiece
from ..keys import KeyScope
from ..service import Service
from . import generation
from .asking import AnswerPiece, AnswerStream, PendingQuestions, Said, note_ignored
from .errors import RESPONSES, JsonRoute, status_and_body
from .security import needs

LEAST = -9999.0  # OpenAI's, for what is impossible: JSON has no infinity
router = APIRouter(route_class=JsonRoute, responses=RESPONSES)
_EVENTS: dict[int | str, dict[str, Any]] = {
    200: {"description": "The answer; with stream, events of its pieces, then `data: [DONE]`.",
          "content": {"text/event-stream": {}}}}


async def service_of(request: Request) -> Service:  # FastAPI runs a plain function in one of its threads
    found: Service = request.app.state.service
    return found


TheService = Annotated[Service, Depends(service_of)]


@router.post("/v1/chat/completions", response_model=generation.Chat, responses=_EVENTS)
@needs(KeyScope.ANSWER)
async def chat(body: generation.ChatRequest, request: Request, response: Response) -> Any:
    """Answers a conversation: the base with its active adapter, or the model that is named."""
    return await _reply(_CHAT, [body.question()], request, response, body)


@router.post("/v1/completions", response_model=generation.TextCompletion, responses=_EVENTS)
@needs(KeyScope.ANSWER)
async def completions(body: generation.CompletionRequest, request: Request, response: Response) -> Any:
    """Continues a text, or each of several."""
    return await _reply(_TEXT, body.questions(), request, response, body)


async def _reply(form: _Form, questions: Sequence[Question], request: Request, response: Response,
                 body: generation.ChatRequest | generation.CompletionRequest) -> Any:
    note_ignored(request, body.ignored())
    asked = await PendingQuestions.begin(questions, request, form.prefix)
    if body.stream:
        usage = body.stream_options is not None and body.stream_options.include_usage
        return AnswerStream(_events(form, asked, bool(usage)), asked, "text/event-stream")
    response.headers.update(asked.headers)
    found = best(asked.questions, await asked.whole(request))
    measured = body.logprobs is not None and body.logprobs is not False
    choices = [{"index": i, **form.whole(said), "logprobs": form.logprobs(said.logprobs, 0) if measured else None,
                "finish_reason": said.finish} for i, said in enumerate(found)]
    return {**_head(form, asked), "choices": choices, "usage": _usage(asked), **asked.cited}


def best(questions: Sequence[Question], found: Sequence[Said]) -> list[Said]:
    """Returns the answers to each question that are kept, the best first."""
    kept: list[Said] = []
    at = 0
    for question in questions:
        own = [*found[at : at + question.n]]
        at += question.n
        kept += own if question.kept is None else sorted(own, key=_mean_logprob, reverse=True)[: question.kept]
    return kept


def _mean_logprob(said: Said) -> float:
    logprobs = [each.logprob for each in said.logprobs if each.logprob is not None]
    return sum(logprobs) / len(logprobs) if logprobs else 0.0


# ---- log-probabilities -----------------------------------------------------------------------------------------------


def chat_logprobs(found: Sequence[TokenLogprob]) -> dict[str, Any]:
    """The log-probabilities of chat: for each token its text, its bytes, and the likeliest tokens there."""
    return {"content": [{**_likely(each.piece, each.logprob or 0.0),
                         "top_logprobs": [_likely(piece, logprob) for _, piece, logprob in each.top]}
                        for each in found], "refusal": None}


def completion_logprobs(found: Sequence[TokenLogprob], offset: int = 0) -> dict[str, Any]:
    """The log-probabilities of completions: lists of tokens, their values, the likeliest tokens and their places.

    A place is counted in characters; the text begins at `offset`.
    """
    places = []
    decoder = codecs.getincrementaldecoder("utf-8")("replace")  # a token may end within a character
    for each in found:
        places.append(offset)
        offset += len(decoder.decode(each.piece))
    values = [None if each.logprob is None else max(each.logprob, LEAST) for each in found]
    # of tokens with equal text (parts of characters), the likeliest
    tops = [None if each.logprob is None else
            {_text(piece): max(logprob, LEAST) for _, piece, logprob in reversed(each.top)} for each in found]
    return {"tokens": [_text(each.piece) for each in found], "token_logprobs": values,
            "top_logprobs": tops if any(tops) else None, "text_offset": places}


def _likely(piece: bytes, logprob: float) -> dict[str, Any]:
    return {"token": _text(piece), "logprob": max(logprob, LEAST), "bytes": list(piece)}


def _text(piece: bytes) -> str:
    return piece.decode("utf-8", "replace")


# ---- the two shapes -------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Form:
    """The differences between chat and completions."""

    prefix: str
    object: str
    chunk: str
    whole: Callable[[Said], dict[str, Any]]
    part: Callable[[AnswerPiece], dict[str, Any]]
    first: dict[str, Any] | None  # before all pieces of a choice
    logprobs: Callable[[Sequence[TokenLogprob], int], dict[str, Any]]  # and characters that came before


def _message(said: Said) -> dict[str, Any]:
    message: dict[str, Any] = {"role": "assistant", "content": said.text}
    if said.thinking:
        message["reasoning_content"] = said.thinking
    if said.calls:
        message["content"] = said.text if said.text.strip() else None
        message["tool_calls"] = [_call({"id": call.id, "type": "function"}, call.name, call.arguments)
                                 for call in said.calls]
    return {"message": message}


def _call(head: dict[str, Any], name: str, arguments: str) -> dict[str, Any]:
    return {**head, "function": {"name": name, "arguments": arguments}}


def _delta(piece: AnswerPiece) -> dict[str, Any]:
    delta: dict[str, Any] = {"content": piece.text} if piece.text else {}
    if piece.thinking:
        delta["reasoning_content"] = piece.thinking
    if piece.calls:
        delta["tool_calls"] = [
            _call({"index": part.index, "id": part.id, "type": "function"}, part.name, part.arguments) if part.id
            else {"index": part.index, "function": {"arguments": part.arguments}} for part in _one_each(piece.calls)]
    return {"delta": delta}


def _one_each(parts: Sequence[CallPiece]) -> list[CallPiece]:
    """Joins all parts of a call: clients read no more than one part of a call in a delta."""
    found: dict[int, CallPiece] = {}
    for part in parts:
        before = found.get(part.index)
        found[part.index] = replace(before, arguments=before.arguments + part.arguments) if before else part
    return [*found.values()]


_CHAT = _Form("chatcmpl-", "chat.completion", "chat.completion.chunk", whole=_message, part=_delta,
              first={"delta": {"role": "assistant", "content": ""}},
              logprobs=lambda found, _: chat_logprobs(found))
_TEXT = _Form("cmpl-", "text_completion", "text_completion", whole=lambda said: {"text": said.text},
              part=lambda piece: {"text": piece.text}, first=None, logprobs=completion_logprobs)


# ---- events ---------------------------------------------------------------------------------------------------------


async def _events(form: _Form, asked: PendingQuestions, usage: bool) -> AsyncIterator[str]:
    head = {**_head(form, asked), "object": form.chunk}
    if form.first:
        for i in range(len(asked.completions)):
            yield _line(head, choices=[_choice(i, form.first)])
    offsets = [0] * len(asked.completions)
    try:
        async for piece in asked.pieces():
            if piece.text or piece.thinking or piece.calls or piece.logprobs:
                logprobs = form.logprobs(piece.logprobs, offsets[piece.index]) if piece.logprobs else None
                offsets[piece.index] += len(piece.text)
                yield _line(head, choices=[_choice(piece.index, form.part(piece), logprobs=logprobs)])
            if piece.finish:
                yield _line(head, choices=[_choice(piece.index, form.part(AnswerPiece(piece.index)), piece.finish)],
                            **asked.cited)
    except Exception as error:  # the head is sent already, and with it the status
        yield f"data: {json.dumps(status_and_body(error)[1])}\n\n"
        return
    if usage:
        yield _line(head, choices=[], usage=_usage(asked))
    yield "data: [DONE]\n\n"


def _choice(index: int, part: dict[str, Any], finish: str | None = None,
            logprobs: dict[str, Any] | None = None) -> dict[str, Any]:
    return {"index": index, **part, "logprobs": logprobs, "finish_reason": finish}


def _line(head: dict[str, Any], **fields: Any) -> str:
    return f"data: {json.dumps({**head, **fields}, ensure_ascii=False)}\n\n"


def _head(form: _Form, asked: PendingQuestions) -> dict[str, Any]:
    head = {"id": asked.id, "object": form.object, "created": asked.created, "model": asked.model}
    return head | ({"edgetune": asked.origin} if asked.origin else {})


def _usage(asked: PendingQuestions) -> dict[str, Any]:
    prompt = asked.prompt_tokens
    answer = asked.completion_tokens
    return {"prompt_tokens": prompt, "completion_tokens": answer, "total_tokens": prompt + answer,
            "prompt_tokens_details": {"cached_tokens": asked.cached_tokens}}
