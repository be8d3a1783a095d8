"""Chat and completions: a whole answer, or server-sent events while it is made. A client that leaves cancels it."""

from __future__ import annotations

import asyncio
import json
import logging
import secrets
import time
from collections.abc import AsyncIterator, Callable
from contextlib import suppress
from dataclasses import dataclass
from typing import Annotated, Any

from fastapi import APIRouter, Depends, Request
from starlette.exceptions import HTTPException
from starlette.responses import Response, StreamingResponse

from ...errors import NotFoundError
from ...serving.completion import Completion
from ..learning.recall import RecalledAnswer
from ..service import Service
from . import schemas
from .errors import JsonRoute, status_and_body
from .pools import Pools, ThePools

log = logging.getLogger("edgetune.daemon")
router = APIRouter(route_class=JsonRoute)
_EVENTS: dict[int | str, dict[str, Any]] = {
    200: {"description": "The answer; with stream, events of its pieces, then `data: [DONE]`.",
          "content": {"text/event-stream": {}}}}


def service_of(request: Request) -> Service:
    found: Service = request.app.state.service
    return found


OnPiece = Callable[[Completion, str | None], None]
TheService = Annotated[Service, Depends(service_of)]


@router.post("/v1/chat/completions", response_model=schemas.Chat, responses=_EVENTS)
async def chat(body: schemas.ChatRequest, request: Request, response: Response, service: TheService,
               pools: ThePools) -> Any:
    messages = [message.plain() for message in body.messages]
    tools = None if body.tool_choice == "none" else body.tools
    answer = await Answer.begin(service, pools, _CHAT, lambda on_piece: service.chat(
        messages, tools, model=body.model, on_piece=on_piece, **body.options()))
    return await _reply(answer, request, response, body, messages=messages, tools=tools)


@router.post("/v1/completions", response_model=schemas.Completion, responses=_EVENTS)
async def completions(body: schemas.CompletionRequest, request: Request, response: Response, service: TheService,
                      pools: ThePools) -> Any:
    answer = await Answer.begin(service, pools, _TEXT, lambda on_piece: service.generate(
        body.prompt, model=body.model, on_piece=on_piece, **body.options()))
    prompt = body.prompt if isinstance(body.prompt, str) else service.served.tokenizer.decode(body.prompt)
    return await _reply(answer, request, response, body, prompt=prompt)


async def _reply(answer: Answer, request: Request, response: Response, body: schemas.Generation,
                 **question: Any) -> Any:
    def keep(text: str) -> None:
        answered = AnsweredRequest(question, text, answer.head["model"])
        request.app.state.recent.add(answer.head["id"], answered)
        if request.app.state.service.config.log_prompts:
            log.info("%s: %s", answer.head["id"], json.dumps({**question, "answer": text}, ensure_ascii=False))

    recalled = {"X-Edgetune-Recalled": answer.recalled} if answer.recalled else {}
    if body.stream:
        usage = body.stream_options is not None and body.stream_options.include_usage
        return StreamingResponse(answer.events(usage, keep), headers=recalled, media_type="text/event-stream")
    response.headers.update(recalled)
    watcher = asyncio.create_task(_cancel_when_gone(request, answer.completion))
    try:
        return await answer.whole(keep)
    finally:
        watcher.cancel()


async def _cancel_when_gone(request: Request, completion: Completion) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass
    completion.cancel()


# ---- an answer in progress ------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Form:
    """What differs between chat and completions."""

    prefix: str
    object: str
    chunk: str
    whole: Callable[[str], dict[str, Any]]
    part: Callable[[str], dict[str, Any]]
    first: dict[str, Any] | None  # before all pieces
    last: dict[str, Any]


_CHAT = _Form("chatcmpl-", "chat.completion", "chat.completion.chunk",
              whole=lambda text: {"message": {"role": "assistant", "content": text}},
              part=lambda text: {"delta": {"content": text}},
              first={"delta": {"role": "assistant", "content": ""}}, last={"delta": {}})
_TEXT = _Form("cmpl-", "text_completion", "text_completion", whole=lambda text: {"text": text},
              part=lambda text: {"text": text}, first=None, last={"text": ""})


class Answer:
    """A completion of the batcher, awaited in asyncio."""

    def __init__(self, form: _Form, head: dict[str, Any], completion: Completion,
                 pieces: asyncio.Queue[str | None]) -> None:
        self.form = form
        self.head = head
        self.completion = completion
        self._pieces = pieces

    @classmethod
    async def begin(cls, service: Service, pools: Pools, form: _Form,
                    submit: Callable[[OnPiece], Completion]) -> Answer:
        """Raises what is wrong with the request. In a thread, because a long prompt takes a while to tokenize."""
        loop = asyncio.get_running_loop()
        pieces = asyncio.Queue[str | None]()

        def take(_completion: Completion, piece: str | None) -> None:  # on the batcher's thread
            with suppress(RuntimeError):  # the loop is closed: the client is gone
                loop.call_soon_threadsafe(pieces.put_nowait, piece)

        completion = await pools.take(lambda: submit(take))
        head = {"id": form.prefix + secrets.token_hex(12), "object": form.object, "created": int(time.time()),
                "model": completion.adapter or service.name}
        answer = cls(form, head, completion, pieces)
        if answer.recalled:
            head["edgetune"] = {"recalled": answer.recalled}
        return answer

    @property
    def recalled(self) -> str | None:
        """The id of the feedback that it was taken from; None: the model makes it."""
        return self.completion.feedback if isinstance(self.completion, RecalledAnswer) else None

    async def _text(self) -> AsyncIterator[str]:
        """Its pieces. Raises its error."""
        try:
            while (piece := await self._pieces.get()) is not None:
                yield piece
        finally:
            self.completion.cancel()  # the client is gone; after the end this changes nothing
        if self.completion.error:
            raise self.completion.error
        if self.completion.finish == "cancelled":
            raise HTTPException(503, "the answer was broken off because the daemon stops; ask again")

    async def whole(self, keep: Callable[[str], None]) -> dict[str, Any]:
        text = "".join([piece async for piece in self._text()])
        keep(text)
        choice = {"index": 0, **self.form.whole(text), "finish_reason": self.completion.finish}
        return {**self.head, "choices": [choice], "usage": self._usage()}

    async def events(self, usage: bool, keep: Callable[[str], None]) -> AsyncIterator[str]:
        if self.form.first:
            yield self._event(self.form.first)
        pieces = []
        try:
            async for piece in self._text():
                pieces.append(piece)
                yield self._event(self.form.part(piece))
        except Exception as error:  # the head is sent already, and with it the status
            yield f"data: {json.dumps(status_and_body(error)[1])}\n\n"
            return
        keep("".join(pieces))
        yield self._event(self.form.last, self.completion.finish)
        if usage:
            yield self._line({"choices": [], "usage": self._usage()})
        yield "data: [DONE]\n\n"

    def _event(self, choice: dict[str, Any], finish: str | None = None) -> str:
        return self._line({"choices": [{"index": 0, **choice, "logprobs": None, "finish_reason": finish}]})

    def _line(self, fields: dict[str, Any]) -> str:
        return f"data: {json.dumps({**self.head, 'object': self.form.chunk, **fields}, ensure_ascii=False)}\n\n"

    def _usage(self) -> dict[str, int]:
        prompt = self.completion.prompt_tokens
        answer = self.completion.completion_tokens
        return {"prompt_tokens": prompt, "completion_tokens": answer, "total_tokens": prompt + answer}


# ---- the last answers -----------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class AnsweredRequest:
    """question: messages and tools, or prompt."""

    question: dict[str, Any]
    answer: str
    model: str

    def to_json(self) -> str:
        return json.dumps([self.question, self.answer, self.model])


class RecentAnswers:
    """The last answers by their ids, for feedback; in memory only. `count` of them, and `size` characters at most.

    They are kept as JSON: objects would take many times as much.
    """

    def __init__(self, count: int = 1000, size: int = 4 << 20) -> None:
        self.count = count
        self.size = size
        self._answers: dict[str, str] = {}
        self._characters = 0

    def add(self, id: str, answered: AnsweredRequest) -> None:
        text = answered.to_json()
        self._answers[id] = text
        self._characters += len(text)
        while len(self._answers) > self.count or (self._characters > self.size and len(self._answers) > 1):
            self._characters -= len(self._answers.pop(next(iter(self._answers))))

    def get(self, id: str) -> AnsweredRequest:
        """Raises NotFoundError."""
        if id not in self._answers:
            raise NotFoundError(f"the answer {id!r:.100} is not among the last ones",
                                "send the messages (or prompt) and the answer themselves")
        return AnsweredRequest(*json.loads(self._answers[id]))
