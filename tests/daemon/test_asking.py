"""Answers in progress and those that were given: who leaves ends them, and feedback finds the last ones."""

import asyncio
import json
import tracemalloc
from contextlib import suppress

import pytest
from services import open_service, until
from starlette.requests import ClientDisconnect, Request

from edgetune.daemon.api.app import app
from edgetune.daemon.api.asking import AnsweredRequest, AnswerStream, PendingQuestions, RecentAnswers
from edgetune.errors import NotFoundError
from edgetune.serving.question import Question

PATIENCE = 60  # seconds; nothing here takes nearly so long
LONG = 300  # tokens of an answer that does not end soon


def test_the_last_answers_are_few_and_small():
    """Also as text: as objects they would be many times as large."""
    recent = RecentAnswers(count=3, size=1000)
    for i in range(5):
        recent.add(f"id-{i}", AnsweredRequest({"prompt": "p"}, "a", "m"))
    assert recent.get("id-2").answer == "a"
    recent.add("large", AnsweredRequest({"prompt": "p" * 990}, "a", "m"))
    assert recent.get("large").model == "m"
    for gone in ("id-1", "id-4"):
        with pytest.raises(NotFoundError):
            recent.get(gone)
    recent = RecentAnswers(size=2**20)
    tracemalloc.start()
    try:
        for i in range(16):
            messages = json.loads(json.dumps([{"role": "user", "content": ""}] * 2000))
            recent.add(f"id-{i}", AnsweredRequest({"messages": messages}, "a", "m"))
            del messages
        assert tracemalloc.get_traced_memory()[0] < 3 * 2**20
    finally:
        tracemalloc.stop()
    assert recent.get("id-15").question == {"messages": [{"role": "user", "content": ""}] * 2000}
    recent = RecentAnswers(count=1)

    class Name(str):
        """Whose second look-up finds that the answer has left meanwhile."""

        __slots__ = ()
        looked_up = 0

        def __hash__(self):
            Name.looked_up += 1
            if Name.looked_up == 2:
                recent.add("other", AnsweredRequest({"prompt": "p"}, "b", "m"))
            return str.__hash__(self)

    recent.add("id", AnsweredRequest({"prompt": "p"}, "a", "m"))
    with suppress(NotFoundError):
        assert recent.get(Name("id")).answer == "a"


@pytest.mark.parametrize("leaves_at", ["http.response.start", "http.response.body"])
def test_who_leaves_a_stream_before_the_first_piece_ends_its_answer(tmp_path, leaves_at):
    """Of an application server that waits for its client there."""
    pieces = []

    async def events(asked):
        yield "the head"
        async for piece in asked.pieces():
            pieces.append(piece)
            yield "a piece"

    async def send(message):
        if message["type"] == leaves_at:
            raise OSError("the client is gone")

    async def receive():
        await asyncio.sleep(PATIENCE)
        return {"type": "http.disconnect"}

    async def leave(service):
        request = Request({"type": "http", "app": app(service), "headers": []})
        question = Question(prompt="lamp", options={"max_tokens": LONG})
        asked = await PendingQuestions.begin([question], request, "test-")
        with suppress(OSError, ClientDisconnect):
            await AnswerStream(events(asked), asked, "text/plain")({"type": "http"}, receive, send)
        return asked

    with open_service(tmp_path) as service:
        assert all(completion.cancelled for completion in asyncio.run(leave(service)).completions)
        assert not pieces
        until(lambda: not service.batcher.busy)
