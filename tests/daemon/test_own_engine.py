"""Adapters that llama.cpp cannot apply, in a daemon: a job trains one, the gate evaluates it, it answers by every API
as generate --engine native does, and it is rolled back.
"""

import json
import re
from concurrent.futures import ThreadPoolExecutor

import pytest
import templates
from commands import run as command
from services import SMALL, short_canary, until, upload
from surfaces import SURFACES, Clients
from thread_workers import ThreadWorker
from tiny import write_tiny

from edgetune.adapters.base import families
from edgetune.adapters.store import FILE
from edgetune.daemon.options import DaemonConfig
from edgetune.daemon.service import Service
from edgetune.errors import UsageError
from edgetune.formats.gguf import open_gguf
from edgetune.serving.own_engine import own_memory

SHAPE = {"n_context": 512, "metadata": {"tokenizer.chat_template": templates.CHATML}}
DAEMON = {"context": 512, "parallel": 4, "start_process": ThreadWorker}
ROWS = [{"prompt": f"turn on lamp {i}", "completion": "on"} for i in range(24)]
FAMILIES: dict[str, dict[str, object]] = {"houlsby": {"adapter_width": 8}, "molora": {"experts": 2, "rank": 2},
                                          "bitfit": {}, "full": {"blocks": "last:1", "lr": 0.003}}
OPTIONS = {**{key: value for key, value in SMALL.items() if key != "rank"}, "lr": 0.03, "steps": 40}
GREEDY = {"temperature": 0, "max_tokens": 8}


def job_of(service, name):
    service.adapters.promote(None, "test")  # so that the gate compares it with the base
    made = service.jobs.create("tiny", upload(service, ROWS), suffix=name,
                               hyperparameters={**OPTIONS, "family": name} | FAMILIES[name])
    job = service.jobs.wait(made.id, 60)
    assert (job.status, job.error) == ("succeeded", None)
    return job


@pytest.fixture(scope="module", params=FAMILIES)
def job(request, running):
    return job_of(running.service, request.param)


def asked(number):
    return [{"role": "user", "content": f"turn on lamp {number} now"}]


def natively(model, folder, prompts, tmp_path):
    """Texts by generate --engine native."""
    file = tmp_path / "prompts.jsonl"
    file.write_text("".join(json.dumps({"messages": messages}) + "\n" for messages in prompts))
    said = command("generate", model, file, "--engine", "native", "--adapter", folder, "--threads", 1, "--max-tokens",
                   GREEDY["max_tokens"])
    return [json.loads(line)["text"] for line in said.splitlines()]


@pytest.mark.dev
def test_a_job_ends_in_an_adapter_that_the_gate_has_evaluated(running, job):
    adapter = running.service.adapters.get(job.result)
    assert adapter.verdict["new"]["loss"] < adapter.verdict["old"]["loss"] / 2
    assert adapter.verdict["passed"], adapter.verdict["reason"]
    assert adapter.state == "serving"


def test_answers_are_those_of_generate_native(running, model, client, job, tmp_path):
    """Of many at once, streamed and whole, by every API."""
    prompts = [asked(i) for i in range(6)]
    expected = natively(model, running.service.adapters.path(job.result), prompts, tmp_path)
    options = {"model": job.result, **GREEDY}
    with ThreadPoolExecutor(len(prompts)) as pool:
        found = pool.map(lambda messages: client.chat.completions.create(messages=messages, **options), prompts)
        assert [one.choices[0].message.content for one in found] == expected
    streamed = client.chat.completions.create(messages=prompts[0], stream=True, **options)
    assert "".join(chunk.choices[0].delta.content or "" for chunk in streamed if chunk.choices) == expected[0]
    render = running.service.served.tokenizer.render
    clients = Clients(client, running.url, lambda messages: render(messages, add_generation_prompt=True))
    for surface, messages, text in zip(SURFACES, prompts, expected, strict=False):
        assert surface(clients, messages, False, job.result, **GREEDY).text == text, surface.name
    base = client.chat.completions.create(model="tiny", messages=prompts[0], **GREEDY)
    assert base.choices[0].message.content != expected[0]


@pytest.mark.dev
def test_it_is_rolled_back_restarted_and_deleted(running, model, job, tmp_path):
    folder = running.service.adapters.path(job.result)
    config = DaemonConfig(state=str(tmp_path), context=512, threads=1)
    with Service(model, config) as service:
        found = service.add_adapter(folder)
        service.adapters.promote(found.id, "test")
        answer = service.chat(asked(1), max_tokens=4).text()
        assert service.adapters.rollback("test") is None
        assert service.chat(asked(1), max_tokens=4).text() != answer
        service.adapters.promote(found.id, "test")
    with Service(model, config) as service:
        assert service.adapters.serving == found.id
        assert service.chat(asked(1), max_tokens=4).text() == answer
        assert service.room(has_begun=False).resident < service.budget - service.served.busy_bytes
        service.adapters.rollback("test")
        service.adapters.delete(found.id)
        assert service.served.adapters() == []


@pytest.mark.dev
def test_a_model_with_states_answers_too(tmp_path):
    """A block without keys keeps a state of each conversation."""
    model = write_tiny(tmp_path / "lfm2.gguf", "lfm2", **SHAPE)
    config = DaemonConfig(state=str(tmp_path / "state"), context=512, threads=1, canary=str(short_canary(tmp_path)))
    with Service(model, config) as service:
        made = service.jobs.create("lfm2", upload(service, ROWS),
                                   hyperparameters={**OPTIONS, "family": "houlsby", **FAMILIES["houlsby"]})
        job = service.jobs.wait(made.id, 60)
        assert (job.status, job.error) == ("succeeded", None)
        prompts = [asked(i) for i in range(4)]
        expected = natively(model, service.adapters.path(job.result), prompts, tmp_path)
        for _ in range(2):
            answers = [service.chat(messages, model=job.result, **GREEDY) for messages in prompts]
            assert [answer.text() for answer in answers] == expected


def test_what_has_no_room_is_refused_with_the_numbers(running, model, job, tmp_path):
    folder = running.service.adapters.path(job.result)
    with Service(model, DaemonConfig(state=str(tmp_path), context=512, threads=1)) as service:
        needed = own_memory(open_gguf(model), [folder], 512, service.served.cache.sequences, 1)
        service.budget = service.memory() + needed // 2
        with pytest.raises(UsageError, match=r"the adapter takes [\d.]+ MiB of memory, .* are left"):
            service.add_adapter(folder)
        assert service.served.adapters() == []
        assert needed > 10 * (folder / FILE).stat().st_size


@pytest.mark.dev
def test_what_a_job_made_is_refused_without_room_for_it(tmp_path, model):
    config = DaemonConfig(state=str(tmp_path), context=512, threads=1, canary=str(short_canary(tmp_path)))
    with Service(model, config) as service:
        before = service.served.adapters()
        service.adapters._left = lambda: 1 << 10  # what is left when the training is over
        made = service.jobs.create("tiny", upload(service, ROWS), hyperparameters={**OPTIONS, "family": "bitfit"})
        until(lambda: service.jobs.get(made.id).status in ("paused", "succeeded", "failed"))
        assert service.jobs.get(made.id).status == "paused"
        told = [event["message"] for event in service.jobs.events(made.id)]
        assert any(re.search(r"is kept: the adapter takes .* of memory, 1 KiB are left", one) for one in told)
        assert service.served.adapters() == before
        service.adapters._left = lambda: 1 << 30
        service.jobs.resume(made.id)
        assert service.jobs.wait(made.id, 60).status == "succeeded"


@pytest.mark.dev
def test_a_job_may_have_any_family(http):
    of_jobs = re.search(r'"enum":(\[[^\]]*"houlsby"[^\]]*\])', http.get("/openapi.json").text)
    assert of_jobs
    assert sorted(json.loads(of_jobs[1])) == sorted(families())
