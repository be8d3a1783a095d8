"""The system message of an adapter, in a daemon: who is answered with it, and what is learned with it."""

import pytest
from services import SMALL, open_service, upload
from thread_workers import ThreadWorker

from edgetune.daemon.api.app import list_models
from edgetune.daemon.jobs import recipe
from edgetune.daemon.learning.recall import Recall
from edgetune.serving.question import Question

SYSTEM = "Be brief."
ASK = [{"role": "user", "content": "turn on lamp 3"}]
WITH_IT = [{"role": "system", "content": SYSTEM}, *ASK]


@pytest.fixture(scope="module")
def service(tmp_path_factory):
    """Its active adapter is called brief and was trained with SYSTEM."""
    with open_service(tmp_path_factory.mktemp("service"), context=512, start_process=ThreadWorker) as service:
        asked = service.jobs.create("tiny", upload(service), hyperparameters={**SMALL, "steps": 4, "system": SYSTEM})
        adapter = str(service.jobs.wait(asked.id, 60).result)
        service.adapters.rename(adapter, "brief")
        service.adapters.promote(adapter, "test")
        yield service


def asked(service, messages, model):
    """The length of the prompt, and an answer that repeats to the last digit."""
    options = {"max_tokens": 8, "temperature": 1.0, "seed": 5}
    chat = service.chat(messages, model=model, **options)
    question = service.ask(Question(messages, model=model, options=options))
    found = chat.prompt_tokens, chat.text()
    assert (question.prompt_tokens, question.text()) == found
    return found


@pytest.mark.dev
@pytest.mark.parametrize("model", ["", "tiny:latest", "brief"])
def test_a_chat_without_one_is_answered_with_it(service, model):
    assert asked(service, ASK, model) == asked(service, WITH_IT, model)


@pytest.mark.dev
def test_where_it_is_used_and_where_not(service):
    bare = asked(service, ASK, "tiny")[0]
    assert bare < asked(service, WITH_IT, "tiny")[0]
    for own in ("Be kind to all of us.", ""):
        messages = [{"role": "system", "content": own}, *ASK]
        assert asked(service, messages, "brief")[0] == asked(service, messages, "tiny")[0]
    found = {model["id"]: model["system"] for model in list_models(service)["data"]}
    assert found == {"tiny": "", "tiny:latest": SYSTEM, service.adapters.serving: SYSTEM, "brief": SYSTEM}
    other = [{"role": "user", "content": "which light?"}]
    given = service.feedback.add(messages=other, answer="no", correction="a lamp")
    assert given.row is not None
    assert given.row["messages"][0] == other[0]
    answer = service.chat(other, max_tokens=32)
    assert answer.source == Recall.name
    assert answer.prompt_tokens == service.chat([WITH_IT[0], *other], max_tokens=1).prompt_tokens
    for i in range(16):
        service.feedback.add(messages=[{"role": "user", "content": f"light {i}"}], answer="", correction="on")
    job = service.learner.begin()
    assert (service.jobs.folder / job.id / recipe.SYSTEM).read_text() == SYSTEM
    service.jobs.cancel(job.id)
