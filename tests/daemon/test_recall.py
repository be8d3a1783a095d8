"""edgetune.daemon.learning.recall: repeats of corrected questions, before a training has learned them and after."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from daemons import PATIENCE, daemon
from services import open_service, until
from tiny import write_tiny

from edgetune.daemon.learning.recall import Recall
from edgetune.daemon.service import Service
from edgetune.data.question import digest
from edgetune.errors import EdgetuneError
from edgetune.serving.completion import MODEL

RIGHT = "a lamp, of course"


@pytest.fixture
def service(tmp_path: Path) -> Iterator[Service]:
    with open_service(tmp_path, context=512, parallel=2) as service:
        yield service


def asked(text: str = "which light?") -> list[dict[str, Any]]:
    return [{"role": "user", "content": text}]


def said(service: Service, messages: list[dict[str, Any]] | None = None, **options: Any) -> str | None:
    """What it recalls for a chat; None: the model answers."""
    answer = service.chat(messages or asked(), **{"max_tokens": 32, **options})
    text = answer.text()
    return text if answer.source == Recall.name else None


# ---- what is recalled ------------------------------------------------------------------------------------------------


def test_a_corrected_question_is_answered_as_corrected(service: Service) -> None:
    wrong = service.chat(asked(), max_tokens=32).text()
    given = service.feedback.add(messages=asked(), answer=wrong, correction=RIGHT)
    pieces: list[str | None] = []
    answer = service.chat(asked(), on_piece=lambda _, piece: pieces.append(piece))
    assert answer.text() == RIGHT
    assert answer.source == Recall.name
    assert answer.details == {"recalled": given.id}
    assert pieces == [RIGHT, None]
    assert answer.finish == "stop"
    assert answer.completion_tokens == len(service.served.tokenizer.encode(RIGHT, continues=True))
    assert answer.prompt_tokens == service.chat(asked(), model=service.name, max_tokens=1).prompt_tokens
    assert said(service, model=f"{service.name}:latest") == RIGHT


def test_a_prompt_is_answered_too(service: Service) -> None:
    service.feedback.add(prompt="which light?", correction=RIGHT)
    assert service.generate("which light?").text() == RIGHT
    assert said(service) is None  # a chat is another question
    tokens = service.served.tokenizer.encode("which light?", bos=True)
    assert service.generate(tokens, max_tokens=2).source == MODEL


def test_what_is_not_an_exact_repeat_is_answered_by_the_model(service: Service) -> None:
    service.feedback.add(messages=asked(), correction=RIGHT)
    tools = [{"type": "function", "function": {"name": "lamp"}}]
    for messages, options in ((asked("Which light?"), {}), ([{"role": "system", "content": "be brief"}, *asked()], {}),
                              ([*asked(), {"role": "assistant", "content": RIGHT}, *asked()], {}),
                              (asked(), {"model": service.name}), (asked(), {"temperature": 0.7}),
                              (asked(), {"max_tokens": 2}), (asked(), {"stop": "of"}), (asked(), {"stop": ["x", " "]}),
                              (asked(), {"tools": tools})):
        assert said(service, messages, **options) is None, (messages, options)
    assert said(service, stop=["x", "y"], temperature=0, seed=3, top_p=0.5) == RIGHT


def test_what_a_request_asks_wrongly_is_refused_as_ever(service: Service) -> None:
    service.feedback.add(messages=asked(), correction=RIGHT)
    for wrong in ({"top_p": 2.0}, {"max_tokens": 0}, {"temperature": -1.0}, {"seed": -1}, {"stop": ""},
                  {"model": "nobody"}):
        said_of = []
        for messages in (asked(), asked("another")):
            with pytest.raises(EdgetuneError) as error:
                service.chat(messages, **wrong)
            said_of.append(str(error.value))
        assert said_of[0] == said_of[1]


def test_only_the_latest_word_counts(service: Service) -> None:
    feedback = service.feedback
    first = feedback.add(messages=asked(), correction="a bulb")
    second = feedback.add(messages=asked(), answer="a bulb", correction=RIGHT)
    assert said(service) == RIGHT
    feedback.edit(first.id, "a torch")
    assert said(service) == "a torch"
    feedback.delete(first.id)
    assert said(service) is None
    feedback.add(messages=asked(), answer=RIGHT, rating="up")
    assert said(service) == RIGHT
    feedback.add(messages=asked(), answer=RIGHT, rating="down")  # takes both back
    assert said(service) is None
    third = feedback.add(messages=asked(), correction="a candle")
    assert said(service) == "a candle"
    feedback.set_aside(third.id)
    feedback.edit(second.id, RIGHT)
    assert said(service) == RIGHT
    with feedback.store.write() as db:
        db.execute("UPDATE feedback SET row = '{' WHERE id = ?", (second.id,))
    assert said(service) is None  # damaged


def test_what_was_set_aside_is_not_recalled_and_hides_what_was_said_before(service: Service) -> None:
    service.feedback.add(messages=asked(), correction="a bulb")
    last = service.feedback.add(messages=asked(), correction=RIGHT)
    service.feedback.set_aside(last.id)
    assert said(service) is None


def test_it_can_be_switched_off(tmp_path: Path) -> None:
    with open_service(tmp_path, recall=False) as service:
        service.feedback.add(messages=asked(), correction=RIGHT)
        assert said(service) is None


# ---- after a training ------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_what_a_training_has_learned_the_model_answers(service: Service) -> None:
    """What is held out is recalled for good: it is never learned. After a roll-back all is again."""
    feedback = service.feedback
    made = [feedback.add(messages=asked(f"turn on light {i}"), correction="on") for i in range(10)]

    def recalled() -> set[str]:
        return {note.id for i, note in enumerate(made) if said(service, asked(f"turn on light {i}"))}

    assert recalled() == {note.id for note in made}
    adapters = []
    for turn in range(2):
        job = service.jobs.wait(service.learner.begin().id, 60)
        assert job.status == "succeeded", job.error
        until(lambda: not feedback.unsettled())
        adapters.append(job.result)
        with feedback.store.write() as db:  # whatever the gate thought of a tiny model
            db.execute("UPDATE feedback SET state = 'used', job = ? WHERE state IN ('new', 'aside')", (job.id,))
            db.execute("UPDATE adapters SET verdict = json_remove(verdict, '$.scores')")
        service.adapters.promote(job.result, "for the test")
        assert recalled() == {note.id for note in made if note.held}
        if turn == 0:
            made += [feedback.add(messages=asked(f"turn on light {i}"), correction="on") for i in range(10, 15)]
            assert recalled() == {note.id for i, note in enumerate(made) if note.held or i >= 10}
    service.adapters.promote(adapters[0], "for the test")
    assert recalled() == {note.id for i, note in enumerate(made) if note.held or i >= 10}
    service.adapters.promote(None, "for the test")
    assert recalled() == {note.id for note in made}


def test_what_a_training_failed_to_learn_is_recalled(service: Service) -> None:
    """As the gate found out: of two corrections one is another answer than what the model says afterwards."""
    made = [service.feedback.add(messages=asked(f"turn on light {i}"), correction="on") for i in range(10)]
    learned = [i for i, note in enumerate(made) if not note.held]
    kept, missed = learned[0], learned[-1]
    job = service.jobs.wait(service.learner.begin().id, 60)
    until(lambda: not service.feedback.unsettled())
    scores = service.adapters.get(job.result).verdict["scores"]
    names = [digest(service.feedback.get(made[i].id).row) for i in (kept, missed)]
    assert set(names) <= scores.keys()
    for prose in (False, True):
        for name, right in zip(names, (True, False), strict=True):
            scores[name] |= {"right": right, "prose": prose}
        with service.feedback.store.write() as db:
            db.execute("UPDATE feedback SET state = 'used', job = ? WHERE state IN ('new', 'aside')", (job.id,))
            db.execute("UPDATE adapters SET verdict = json_set(verdict, '$.scores', json(?))",
                       (json.dumps(scores),))
        service.adapters.promote(job.result, "for the test")
        assert said(service, asked(f"turn on light {kept}")) is None
        recalled = said(service, asked(f"turn on light {missed}"))
        assert recalled == (None if prose else "on")  # prose is not expected by the word


# ---- as clients see it -----------------------------------------------------------------------------------------------


def test_clients_are_told(tmp_path: Path) -> None:
    httpx = pytest.importorskip("httpx")
    model = write_tiny(tmp_path / "tiny.gguf", formats="Q8_0")
    chat = {"messages": asked(), "max_tokens": 32}
    with daemon(model, tmp_path / "state") as running, httpx.Client(base_url=running.url, timeout=PATIENCE) as client:
        first = client.post("/v1/chat/completions", json=chat)
        assert first.json()["edgetune"] is None
        assert "x-edgetune-recalled" not in first.headers
        note = client.post("/v1/feedback", json={"completion_id": first.json()["id"], "correction": RIGHT}).json()
        mark = {"source": "recall", "recalled": note["id"]}
        whole = client.post("/v1/chat/completions", json=chat)
        assert whole.headers["x-edgetune-source"] == "recall"
        assert whole.headers["x-edgetune-recalled"] == note["id"]
        assert whole.json()["edgetune"] == mark
        assert whole.json()["choices"][0]["message"]["content"] == RIGHT
        assert whole.json()["model"] == "tiny"
        with client.stream("POST", "/v1/chat/completions", json={**chat, "stream": True}) as stream:
            assert stream.headers["x-edgetune-recalled"] == note["id"]
            chunks = [json.loads(line[6:]) for line in stream.iter_lines() if line.startswith("data: {")]
        assert "".join(chunk["choices"][0]["delta"].get("content", "") for chunk in chunks) == RIGHT
        assert all(chunk["edgetune"] == mark for chunk in chunks)
        client.post("/v1/feedback", json={"completion_id": chunks[0]["id"], "rating": "down"}).raise_for_status()
        assert client.post("/v1/chat/completions", json=chat).json()["choices"] == first.json()["choices"]
        assert client.get(f"/v1/feedback/{note['id']}").json()["state"] == "withdrawn"

        client.post("/v1/feedback", json={"prompt": "light", "correction": RIGHT}).raise_for_status()
        text = client.post("/v1/completions", json={"prompt": "light", "max_tokens": 32}).json()
        assert text["choices"][0]["text"] == RIGHT
        assert text["edgetune"]["recalled"].startswith("fb-")


@pytest.mark.parametrize("taken_back", ["deleted", "thumb down"])
def test_what_the_newest_correction_replaced_does_not_answer_again(service: Service, taken_back: str) -> None:
    service.feedback.add(messages=asked(), answer="no", correction="a bulb")
    newest = service.feedback.add(messages=asked(), answer="no", correction=RIGHT)
    assert said(service) == RIGHT
    if taken_back == "deleted":
        service.feedback.delete(newest.id)
    else:
        service.feedback.add(messages=asked(), answer=RIGHT, rating="down")
    assert said(service) is None
