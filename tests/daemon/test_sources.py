"""edgetune.daemon.sources: a source that answers in place of the model touches nothing else."""

from dataclasses import dataclass
from typing import ClassVar

from services import open_service

from edgetune.serving.completion import MODEL, Completion


@dataclass(frozen=True)
class Clock:
    """The least that works: it knows the time, and leaves all else to the next source."""

    name: ClassVar[str] = "clock"
    now: str = "noon"

    def answer(self, asked):
        messages = asked.content.get("messages") or [{"content": asked.content.get("prompt")}]
        if messages[-1]["content"] != "What time is it?":
            return None
        made = Completion(None, 0, wake=lambda: None, on_piece=asked.options.get("on_piece"))
        made.details = {"zone": "UTC"}
        made.end("stop", self.now)
        return made


def ask(service, text):
    return service.chat([{"role": "user", "content": text}], max_tokens=32)


def test_the_first_source_that_knows_answers(tmp_path):
    with open_service(tmp_path) as service:
        before = ask(service, "Who are you?").text()
        service.sources.insert(0, Clock())
        known = ask(service, "What time is it?")
        assert (known.text(), known.source, known.finish) == ("noon", "clock", "stop")
        other = ask(service, "Who are you?")
        assert (other.text(), other.source) == (before, MODEL)
    with open_service(tmp_path) as service:
        service.sources.insert(0, Clock("late"))
        service.sources.insert(0, Clock("early"))
        assert ask(service, "What time is it?").text() == "early"
        service.feedback.add(messages=[{"role": "user", "content": "What time is it?"}], correction="never")
        service.sources.insert(0, service.recall)
        assert ask(service, "What time is it?").text() == "never"


def test_clients_are_told_the_source(running, http):
    running.service.sources.insert(0, Clock())
    for stream in (False, True):
        body = {"messages": [{"role": "user", "content": "What time is it?"}], "stream": stream}
        response = http.post("/v1/chat/completions", json=body)
        assert response.headers["x-edgetune-source"] == "clock"
        for part in ('"source":"clock"', '"zone":"UTC"'):
            assert part in response.text.replace(" ", "")
