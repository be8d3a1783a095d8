"""Chat and completions: an answer whole, or in server-sent events while it comes. Who goes away is not answered on."""

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
from starlette.responses import StreamingResponse

from ...errors import NotFoundError
from ...serving.completion import Completion
from ..service import Service
from . import schemas
from .errors import JsonRoute, problem
from .pools import Pools, ThePools

log = logging.getLogger("edgetune.daemon")
router = APIRouter(route_class=JsonRoute)
_EVENTS: dict[int | str, dict[str, Any]] = {
    200: {"description": "The answer; with stream, events of its pieces, then `data: [DONE]`.",
          "content": {"text/event-stream": {}}}}


def service_of(request: Request) -> Service:
    found: Service = request.app.state.service
    return found


Hear = Callable[[Completion, str | None], None]
TheService = Annotated[Service, Depends(service_of)]


@router.post("/v1/chat/completions", response_model=schemas.Chat, responses=_EVENTS)
async def chat(body: schemas.ChatRequest, request: Request, service: TheService, pools: ThePools) -> Any:
    messages = [message.plain() for message in body.messages]
    tools = None if body.tool_choice == "none" else body.tools
    answer = await Answer.begin(service, pools, _CHAT, lambda hear: service.chat(
        messages, tools, model=body.model, on_piece=hear, **body.options()))
    return await _reply(answer, request, body, messages=messages, tools=tools)


@router.post("/v1/completions", response_model=schemas.Completion, responses=_EVENTS)
async def completions(body: schemas.CompletionRequest, request: Request, service: TheService,
                      pools: ThePools) -> Any:
    answer = await Answer.begin(service, pools, _TEXT, lambda hear: service.generate(
        body.prompt, model=body.model, on_piece=hear, **body.options()))
    prompt = body.prompt if isinstance(body.prompt, str) else service.served.tokenizer.decode(body.prompt)
    return await _reply(answer, request, body, prompt=prompt)


async def _reply(answer: Answer, request: Request, body: schemas.Generation, **question: Any) -> Any:
    def keep(text: str) -> None:
        said = AnsweredRequest(question, text, answer.head["model"])
        request.app.state.recent.add(answer.head["id"], said)
        if request.app.state.service.config.log_prompts:
            log.info("%s: %s", answer.head["id"], json.dumps({**question, "answer": text}, ensure_ascii=False))

    if body.stream:
        usage = body.stream_options is not None and body.stream_options.include_usage
        return StreamingResponse(answer.events(usage, keep), media_type="text/event-stream")
    watcher = asyncio.create_task(_cancel_when_gone(request, answer.ticket))
    try:
        return await answer.whole(keep)
    finally:
        watcher.cancel()


async def _cancel_when_gone(request: Request, ticket: Completion) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass
    ticket.cancel()


# ---- an answer in the making ----------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Form:
    """How chat and completions differ."""

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
    """A ticket of the batcher on the side of asyncio."""

    def __init__(self, form: _Form, head: dict[str, Any], ticket: Completion,
                 pieces: asyncio.Queue[str | None]) -> None:
        self.form = form
        self.head = head
        self.ticket = ticket
        self._pieces = pieces

    @classmethod
    async def begin(cls, service: Service, pools: Pools, form: _Form, submit: Callable[[Hear], Completion]) -> Answer:
        """Raises what is wrong with the request. In a thread, for a long prompt takes a while to become tokens."""
        loop = asyncio.get_running_loop()
        pieces = asyncio.Queue[str | None]()

        def hear(_ticket: Completion, piece: str | None) -> None:  # on the batcher's thread
            with suppress(RuntimeError):  # the loop is closed: nobody listens any more
                loop.call_soon_threadsafe(pieces.put_nowait, piece)

        ticket = await pools.take(lambda: submit(hear))
        head = {"id": form.prefix + secrets.token_hex(12), "object": form.object, "created": int(time.time()),
                "model": ticket.adapter or service.name}
        return cls(form, head, ticket, pieces)

    async def _text(self) -> AsyncIterator[str]:
        """Its pieces; raises what went wrong meanwhile."""
        try:
            while (piece := await self._pieces.get()) is not None:
                yield piece
        finally:
            self.ticket.cancel()  # who listens no more wants no more; after the end it changes nothing
        if self.ticket.error:
            raise self.ticket.error
        if self.ticket.finish == "cancelled":
            raise HTTPException(503, "the answer was broken off, for the daemon stops; ask again")

    async def whole(self, keep: Callable[[str], None]) -> dict[str, Any]:
        text = "".join([piece async for piece in self._text()])
        keep(text)
        choice = {"index": 0, **self.form.whole(text), "finish_reason": self.ticket.finish}
        return {**self.head, "choices": [choice], "usage": self._usage()}

    async def events(self, usage: bool, keep: Callable[[str], None]) -> AsyncIterator[str]:
        if self.form.first:
            yield self._event(self.form.first)
        pieces = []
        try:
            async for piece in self._text():
                pieces.append(piece)
                yield self._event(self.form.part(piece))
        except Exception as error:  # the head is out already, so a status cannot tell
            yield f"data: {json.dumps(problem(error)[1])}\n\n"
            return
        keep("".join(pieces))
        yield self._event(self.form.last, self.ticket.finish)
        if usage:
            yield self._line({"choices": [], "usage": self._usage()})
        yield "data: [DONE]\n\n"

    def _event(self, choice: dict[str, Any], finish: str | None = None) -> str:
        return self._line({"choices": [{"index": 0, **choice, "logprobs": None, "finish_reason": finish}]})

    def _line(self, fields: dict[str, Any]) -> str:
        return f"data: {json.dumps({**self.head, 'object': self.form.chunk, **fields}, ensure_ascii=False)}\n\n"

    def _usage(self) -> dict[str, int]:
        asked = self.ticket.prompt_tokens
        said = self.ticket.completion_tokens
        return {"prompt_tokens": asked, "completion_tokens": said, "total_tokens": asked + said}


# ---- the last answers -----------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class AnsweredRequest:
    question: dict[str, Any]  # messages and tools, or prompt
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
        self._said: dict[str, str] = {}
        self._held = 0

    def add(self, id: str, said: AnsweredRequest) -> None:
        text = said.to_json()
        self._said[id] = text
        self._held += len(text)
        while len(self._said) > self.count or (self._held > self.size and len(self._said) > 1):
            self._held -= len(self._said.pop(next(iter(self._said))))

    def get(self, id: str) -> AnsweredRequest:
        """Raises NotFoundError."""
        if id not in self._said:
            raise NotFoundError(f"the answer {id!r:.100} is not among the last ones",
                                "send the messages (or prompt) and the answer themselves")
        return AnsweredRequest(*json.loads(self._said[id]))
