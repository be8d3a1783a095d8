"""Answers in progress and those that were given: who leaves ends them, and feedback finds the last ones."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import suppress
from pathlib import Path

import pytest

pytest.importorskip("fastapi")

from services import open_service, until
from starlette.requests import ClientDisconnect, Request
from starlette.types import Message

from edgetune.daemon.api.app import app
from edgetune.daemon.api.asking import AnswerStream, Asked, Piece
from edgetune.daemon.api.recent import AnsweredRequest, RecentAnswers
from edgetune.daemon.service import Service
from edgetune.errors import NotFoundError
from edgetune.serving.question import Question

PATIENCE = 60  # seconds; nothing here takes nearly so long
LONG = 300  # tokens of an answer that does not end soon


def test_the_last_answers_are_few_and_small() -> None:
    recent = RecentAnswers(count=3, size=1000)
    for i in range(5):
        recent.add(f"id-{i}", AnsweredRequest({"prompt": "p"}, "a", "m"))
    assert recent.get("id-2").answer == "a"
    with pytest.raises(NotFoundError):
        recent.get("id-1")
    recent.add("large", AnsweredRequest({"prompt": "p" * 990}, "a", "m"))
    with pytest.raises(NotFoundError):
        recent.get("id-4")
    assert recent.get("large").model == "m"


def test_an_answer_that_leaves_while_it_is_looked_up_is_not_found_or_whole() -> None:
    recent = RecentAnswers(count=1)

    class Name(str):
        """Whose second look-up finds that the answer has left meanwhile."""

        __slots__ = ()
        looked_up = 0

        def __hash__(self) -> int:
            Name.looked_up += 1
            if Name.looked_up == 2:
                recent.add("other", AnsweredRequest({"prompt": "p"}, "b", "m"))
            return str.__hash__(self)

    recent.add("id", AnsweredRequest({"prompt": "p"}, "a", "m"))
    with suppress(NotFoundError):
        assert recent.get(Name("id")).answer == "a"


@pytest.mark.parametrize("leaves_at", ["http.response.start", "http.response.body"])
def test_who_leaves_a_stream_before_the_first_piece_ends_its_answer(tmp_path: Path, leaves_at: str) -> None:
    """Of an application server that waits for its client there."""
    with open_service(tmp_path) as service:
        assert_cancelled(service, leaves_at)


def assert_cancelled(service: Service, leaves_at: str) -> None:
    pieces: list[Piece] = []

    async def events(asked: Asked) -> AsyncIterator[str]:
        yield "the head"
        async for piece in asked.pieces():
            pieces.append(piece)
            yield "a piece"

    async def send(message: Message) -> None:
        if message["type"] == leaves_at:
            raise OSError("the client is gone")

    async def receive() -> Message:
        await asyncio.sleep(PATIENCE)
        return {"type": "http.disconnect"}

    async def leave() -> Asked:
        request = Request({"type": "http", "app": app(service), "headers": []})
        question = Question(prompt="lamp", options={"max_tokens": LONG})
        asked = await Asked.begin([question], request, "test-")
        with suppress(OSError, ClientDisconnect):
            await AnswerStream(events(asked), asked, "text/plain")({"type": "http"}, receive, send)
        return asked

    assert all(completion.cancelled for completion in asyncio.run(leave()).completions)
    assert not pieces
    until(lambda: not service.batcher.busy)
