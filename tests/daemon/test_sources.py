"""edgetune.daemon.sources: a source that answers in place of the model touches nothing else."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import pytest
from services import open_service

from edgetune.daemon.service import Service
from edgetune.daemon.sources import AskedQuestion
from edgetune.serving.completion import MODEL, Completion


@dataclass(frozen=True)
class Clock:
    """The least that works: it knows the time, and leaves all else to the next source."""

    name: ClassVar[str] = "clock"
    now: str = "noon"

    def answer(self, asked: AskedQuestion) -> Completion | None:
        messages = asked.content.get("messages") or [{"content": asked.content.get("prompt")}]
        if messages[-1]["content"] != "What time is it?":
            return None
        made = Completion(None, 0, wake=lambda: None, on_piece=asked.options.get("on_piece"))
        made.details = {"zone": "UTC"}
        made.end("stop", self.now)
        return made


def ask(service: Service, text: str) -> Completion:
    return service.chat([{"role": "user", "content": text}], max_tokens=32)


def test_a_source_answers_what_it_knows(tmp_path: Path) -> None:
    with open_service(tmp_path) as service:
        before = ask(service, "Who are you?").text()
        service.sources.insert(0, Clock())
        known = ask(service, "What time is it?")
        assert (known.text(), known.source, known.finish) == ("noon", "clock", "stop")
        other = ask(service, "Who are you?")
        assert (other.text(), other.source) == (before, MODEL)


def test_the_first_source_that_knows_answers(tmp_path: Path) -> None:
    with open_service(tmp_path) as service:
        service.sources.insert(0, Clock("late"))
        service.sources.insert(0, Clock("early"))
        assert ask(service, "What time is it?").text() == "early"
        service.feedback.add(messages=[{"role": "user", "content": "What time is it?"}], correction="never")
        service.sources.insert(0, service.recall)
        assert ask(service, "What time is it?").text() == "never"


@pytest.mark.parametrize("stream", [False, True])
def test_clients_are_told_the_source(tmp_path: Path, stream: bool) -> None:
    testclient = pytest.importorskip("starlette.testclient")
    from edgetune.daemon.api.app import app

    with open_service(tmp_path, keep_prompts=10) as service:
        service.sources.insert(0, Clock())
        client = testclient.TestClient(app(service), base_url="http://127.0.0.1")
        body = {"messages": [{"role": "user", "content": "What time is it?"}], "stream": stream}
        response = client.post("/v1/chat/completions", json=body)
        assert response.headers["x-edgetune-source"] == "clock"
        assert '"source":"clock"' in response.text.replace(" ", "")
        assert '"zone":"UTC"' in response.text.replace(" ", "")
        assert not service.prompts.list(), "a prompt is kept though the model did not answer it"
