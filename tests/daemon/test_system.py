"""The system message of an adapter, in a daemon: who is answered with it, and what is learned with it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from daemons import daemon, openai_client
from services import SMALL, open_service, upload

from edgetune.daemon.learning.recall import Recall
from edgetune.daemon.service import Service
from edgetune.serving.question import Question

SYSTEM = "Be brief."
ASK = [{"role": "user", "content": "turn on lamp 3"}]
WITH_IT = [{"role": "system", "content": SYSTEM}, *ASK]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("service")


@pytest.fixture(scope="module")
def service(folder: Path) -> Iterator[Service]:
    """Its active adapter is called brief and was trained with SYSTEM."""
    with open_service(folder, context=512) as service:
        asked = service.jobs.create("tiny", upload(service), hyperparameters={**SMALL, "steps": 4, "system": SYSTEM})
        adapter = str(service.jobs.wait(asked.id, 60).result)
        service.adapters.rename(adapter, "brief")
        service.adapters.promote(adapter, "test")
        yield service


def asked(service: Service, messages: list[dict[str, Any]], model: str) -> tuple[int, str]:
    """The length of the prompt, and an answer that repeats to the last digit."""
    options = {"max_tokens": 8, "temperature": 1.0, "seed": 5}
    chat = service.chat(messages, model=model, **options)
    question = service.ask(Question(messages, model=model, options=options))
    found = chat.prompt_tokens, chat.text()
    assert (question.prompt_tokens, question.text()) == found
    return found


@pytest.mark.parametrize("model", ["", "tiny:latest", "brief"])
def test_a_chat_without_one_is_answered_with_it(service: Service, model: str) -> None:
    assert asked(service, ASK, model) == asked(service, WITH_IT, model)


def test_the_base_and_a_message_of_the_clients_own_are_left_alone(service: Service) -> None:
    bare = asked(service, ASK, "tiny")[0]
    assert bare < asked(service, WITH_IT, "tiny")[0]
    for own in ("Be kind to all of us.", ""):
        messages = [{"role": "system", "content": own}, *ASK]
        assert asked(service, messages, "brief")[0] == asked(service, messages, "tiny")[0]


def test_a_correction_is_found_by_what_the_client_sent(service: Service) -> None:
    other = [{"role": "user", "content": "which light?"}]
    given = service.feedback.add(messages=other, answer="no", correction="a lamp")
    assert given.row is not None
    assert given.row["messages"][0] == other[0]
    answer = service.chat(other, max_tokens=32)
    assert answer.source == Recall.name
    assert answer.prompt_tokens == service.chat([WITH_IT[0], *other], max_tokens=1).prompt_tokens


def test_feedback_is_learned_with_it(service: Service) -> None:
    for i in range(16):
        service.feedback.add(messages=[{"role": "user", "content": f"light {i}"}], answer="", correction="on")
    job = service.learner.begin()
    service.jobs.cancel(job.id)
    assert service.jobs.wait(job.id, 60).config["system"] == SYSTEM


def test_models_say_it(tmp_path: Path) -> None:
    with open_service(tmp_path) as service:
        job = service.jobs.create("tiny", upload(service), hyperparameters={**SMALL, "steps": 4, "system": SYSTEM})
        adapter = str(service.jobs.wait(job.id, 60).result)
        service.adapters.promote(adapter, "test")
    with daemon(tmp_path / "tiny.gguf", tmp_path / "state") as running, openai_client(running.url) as client:
        found = {model.id: model.model_dump()["system"] for model in client.models.list()}
    assert found == {"tiny": "", "tiny:latest": SYSTEM, adapter: SYSTEM}
