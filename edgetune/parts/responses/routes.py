"""OpenAI's /v1/responses: a whole response, or its events while it is made. Responses are not stored."""

from __future__ import annotations

import json
import secrets
from collections.abc import AsyncIterator, Iterator, Sequence
from dataclasses import replace
from typing import Any

from fastapi import APIRouter, Request, Response

from ...daemon.api.asking import AnswerStream, PendingQuestions, note_ignored
from ...daemon.api.errors import RESPONSES, JsonRoute, about, status_and_body
from ...daemon.api.security import needs
from ...daemon.keys import KeyScope
from ...data.around import last_question
from ...data.question import content_text
from ...serving.tool_calls import CallPiece
from .bodies import ResponseObject, ResponseRequest

router = APIRouter(route_class=JsonRoute, responses=RESPONSES)
_EVENTS: dict[int | str, dict[str, Any]] = {
    200: {"description": "The response; with stream events from response.created to response.completed, "
                         "response.incomplete or response.failed.",
          "content": {"text/event-stream": {}}}}
Fields = dict[str, Any]


@router.post("/v1/responses", response_model=ResponseObject, responses=_EVENTS)
@needs(KeyScope.ANSWER)
async def responses(body: ResponseRequest, request: Request, response: Response) -> Any:
    """Answers a text, or the items of a conversation. Calls of tools are items of its output."""
    note_ignored(request, body.ignored())
    question = body.question()
    searched = body.searched()
    if searched:
        with about("tools"):
            question = replace(question, around=request.app.state.service.tool(searched.model_dump()))
    asked = await PendingQuestions.begin([question], request, "resp_")
    if body.stream:
        return AnswerStream(_events(body, asked), asked, "text/event-stream")
    response.headers.update(asked.headers)
    said, = await asked.whole(request)
    output = OutputItems(asked.sources)
    list(output.search(searched_for(body, asked)))
    parts = [CallPiece(index, call.id, call.name, call.arguments) for index, call in enumerate(said.calls)]
    list(output.take(said.text, parts))
    list(output.end(said.finish))
    return _response(body, asked, output.items, said.finish)


async def _events(body: ResponseRequest, asked: PendingQuestions) -> AsyncIterator[str]:
    number = -1

    def event(kind: str, fields: Fields) -> str:
        nonlocal number
        number += 1
        data = {"type": kind, "sequence_number": number, **fields}
        return f"event: {kind}\ndata: {json.dumps(data, ensure_ascii=False)}\n\n"

    output = OutputItems(asked.sources)
    for kind in ("response.created", "response.in_progress"):
        yield event(kind, {"response": _response(body, asked, [], "")})
    for kind, fields in output.search(searched_for(body, asked)):
        yield event(kind, fields)
    finish = ""
    try:
        async for piece in asked.pieces():
            for kind, fields in output.take(piece.text, piece.calls):
                yield event(kind, fields)
            finish = piece.finish or finish
    except Exception as error:  # the head is sent already, and with it the status
        told = status_and_body(error)[1]["error"]
        failed = {"status": "failed", "error": {"code": "server_error", "message": told["message"]}}
        yield event("response.failed", {"response": _response(body, asked, output.items, "") | failed})
        return
    for kind, fields in output.end(finish):
        yield event(kind, fields)
    whole = _response(body, asked, output.items, finish)
    yield event(f"response.{whole['status']}", {"response": whole})


def searched_for(body: ResponseRequest, asked: PendingQuestions) -> list[str]:
    """What vector stores were searched for; nothing where none are named."""
    messages = asked.questions[0].messages or ()
    at = last_question(messages)
    return [content_text(messages[at].get("content"))] if body.searched() and at is not None else []


def _response(body: ResponseRequest, asked: PendingQuestions, items: Sequence[Fields], finish: str) -> Fields:
    """The response object. finish: "" while it is made."""
    incomplete = finish == "length"
    status = "incomplete" if incomplete else "completed" if finish else "in_progress"
    given = body.model_dump(include={"instructions", "max_output_tokens", "metadata", "reasoning", "temperature",
                                     "top_p"})
    choice = body.tool_choice or "auto"
    form = body.text.format.model_dump(by_alias=True, exclude_none=True) if body.text and body.text.format else None
    made = ResponseObject(
        id=asked.id, created_at=asked.created, status=status, model=asked.model, output=list(items), **given,  # type: ignore[arg-type]
        incomplete_details={"reason": "max_output_tokens"} if incomplete else None,  # type: ignore[arg-type]
        usage=_usage(asked) if finish else None, text={"format": form or {"type": "text"}},  # type: ignore[arg-type]
        tool_choice=choice if isinstance(choice, str) else choice.model_dump(),
        tools=[tool.model_dump() for tool in body.tools or ()], sources=asked.sources)  # type: ignore[arg-type]
    return made.model_dump()


def _usage(asked: PendingQuestions) -> Fields:
    prompt = asked.prompt_tokens
    answer = asked.completion_tokens
    return {"input_tokens": prompt, "input_tokens_details": {"cached_tokens": asked.cached_tokens},
            "output_tokens": answer, "output_tokens_details": {}, "total_tokens": prompt + answer}


class OutputItems:
    """The items of a response, which grow piece by piece. Changes are yielded as events: (type, fields)."""

    def __init__(self, sources: Sequence[Fields] | None = None) -> None:
        """sources: of the passages that stood before the question."""
        self._sources = sources or ()
        self.items: list[Fields] = []
        self._open = False  # whether the last item is in progress

    def search(self, queries: Sequence[str]) -> Iterator[tuple[str, Fields]]:
        """The search before the answer, if there was one."""
        if not queries:
            return
        item = {"id": "fs_" + secrets.token_hex(12), "type": "file_search_call", "status": "completed",
                "queries": list(queries), "results": None}
        yield from self._begin(item)
        place = {"output_index": 0, "item_id": item["id"]}
        for step in ("in_progress", "searching", "completed"):
            yield f"response.file_search_call.{step}", place
        self._open = False
        yield "response.output_item.done", {"output_index": 0, "item": {**item}}

    def take(self, text: str, calls: Sequence[CallPiece]) -> Iterator[tuple[str, Fields]]:
        if text:
            yield from self._text(text)
        for part in calls:
            yield from self._call(part)

    def end(self, finish: str) -> Iterator[tuple[str, Fields]]:
        """Ends the items. finish: length leaves the last one incomplete. An empty answer becomes a message."""
        if not self.items or self.items[-1]["type"] == "file_search_call":
            yield from self._begin_message()
        yield from self._close("incomplete" if finish == "length" else "completed")

    def _text(self, text: str) -> Iterator[tuple[str, Fields]]:
        if not self._open or self.items[-1]["type"] != "message":
            yield from self._begin_message()
        self.items[-1]["content"][0]["text"] += text
        yield "response.output_text.delta", {**self._at, "content_index": 0, "delta": text, "logprobs": []}

    def _begin_message(self) -> Iterator[tuple[str, Fields]]:
        yield from self._begin({"id": "msg_" + secrets.token_hex(12), "type": "message", "role": "assistant",
                                "status": "in_progress", "content": []})
        part = {"type": "output_text", "text": "", "annotations": [], "logprobs": []}
        yield "response.content_part.added", {**self._at, "content_index": 0, "part": dict(part)}
        self.items[-1]["content"].append(part)

    def _call(self, part: CallPiece) -> Iterator[tuple[str, Fields]]:
        if part.id:
            yield from self._begin({"id": "fc_" + secrets.token_hex(12), "type": "function_call", "call_id": part.id,
                                    "name": part.name, "arguments": "", "status": "in_progress"})
        if part.arguments:
            self.items[-1]["arguments"] += part.arguments
            yield "response.function_call_arguments.delta", {**self._at, "delta": part.arguments}

    def _begin(self, item: Fields) -> Iterator[tuple[str, Fields]]:
        yield from self._close("completed")
        self.items.append(item)
        self._open = True
        yield "response.output_item.added", {"output_index": len(self.items) - 1, "item": {**item}}

    def _close(self, status: str) -> Iterator[tuple[str, Fields]]:
        if not self._open:
            return
        self._open = False
        item = self.items[-1]
        item["status"] = status
        if item["type"] == "message":
            part = item["content"][0]
            for number, cited in enumerate(self._cited(len(part["text"]))):
                part["annotations"].append(cited)
                yield "response.output_text.annotation.added", {**self._at, "content_index": 0,
                                                                "annotation_index": number, "annotation": cited}
            yield "response.output_text.done", {**self._at, "content_index": 0, "text": part["text"], "logprobs": []}
            yield "response.content_part.done", {**self._at, "content_index": 0, "part": {**part}}
        else:
            yield "response.function_call_arguments.done", {**self._at, "name": item["name"],
                                                            "arguments": item["arguments"]}
        yield "response.output_item.done", {"output_index": len(self.items) - 1, "item": {**item}}

    def _cited(self, index: int) -> Iterator[Fields]:
        """The files of the passages, each once, as annotations. index: the character that they stand after."""
        for name, id in {source["file"]: source.get("file_id") or source["file"] for source in self._sources}.items():
            yield {"type": "file_citation", "index": index, "file_id": id, "filename": name}

    @property
    def _at(self) -> Fields:
        return {"output_index": len(self.items) - 1, "item_id": self.items[-1]["id"]}
