"""Ollama's calls by its own Python client, as Home Assistant uses them: what it has beyond test_surfaces."""

import json

import ollama
import pytest
from daemons import PATIENCE
from services import SMALL, upload

SHAPE = {"n_context": 256}
ASK = [{"role": "user", "content": "turn"}]
TAUGHT = "the light off"


@pytest.fixture(scope="module")
def client(running):
    """An adapter of two steps is active. A correction answers ASK."""
    service = running.service
    job = service.jobs.create("tiny", upload(service), hyperparameters={**SMALL, "steps": 2})
    service.adapters.promote(str(service.jobs.wait(job.id, PATIENCE).result), "for the test")
    service.feedback.add(messages=ASK, answer="", correction=TAUGHT, model="tiny")
    with ollama.Client(host=running.url, timeout=PATIENCE) as made:
        yield made


def test_models_are_listed_and_described(client, running, model):
    adapter = running.service.adapters.serving
    listed = client.list().models
    assert [found.model for found in listed] == ["tiny:latest", "tiny:base", adapter]
    assert len({found.digest for found in listed}) == 3
    assert all(found.size == model.stat().st_size for found in listed)
    assert {found.model for found in client.ps().models} == {found.model for found in listed}
    shown = client.show("tiny")
    assert shown.capabilities == ["completion", "tools"]
    assert (shown.details.family, shown.details.quantization_level) == ("llama", "Q8_0")
    assert (shown.modelinfo["general.architecture"], shown.modelinfo["llama.context_length"]) == ("llama", 256)
    assert "<|im_start|>" in shown.template
    with pytest.raises(ollama.ResponseError, match="llama3") as caught:
        client.show("llama3")
    assert caught.value.status_code == 404


def test_a_name_without_a_tag_is_the_active_adapter(client, http):
    """What is sent without options streams, with any Content-Type, as `curl -d` sends it."""
    assert client.chat("tiny", ASK).message.content == client.generate("tiny", "turn").response == TAUGHT
    base = client.chat("tiny:base", ASK, options={"num_predict": 8})
    assert (base.model, base.message.content != TAUGHT) == ("tiny:base", True)
    assert 0 < base.eval_duration < base.total_duration
    assert base.prompt_eval_duration > 0
    answer = http.post("/api/chat", content=json.dumps({"model": "tiny", "messages": ASK}),
                       headers={"Content-Type": "application/x-www-form-urlencoded"})
    assert answer.headers["content-type"] == "application/x-ndjson"
    lines = [json.loads(line) for line in answer.text.splitlines()]
    assert "".join(line["message"]["content"] for line in lines) == TAUGHT
    assert lines[0]["message"]["role"] == "assistant"
    assert lines[0]["created_at"].endswith("Z")
    assert [line.get("eval_count") is None for line in lines] == [True] * (len(lines) - 1) + [False]


def test_generate_uses_the_template_unless_raw(client, running):
    prompt = running.service.served.tokenizer.render(ASK, add_generation_prompt=True)
    chat, raw = (client.generate("tiny:base", given, raw=raw, options={"num_predict": 8})
                 for given, raw in (("turn", False), (str(prompt), True)))
    assert (chat.response, chat.prompt_eval_count) == (raw.response, raw.prompt_eval_count)
    with_system, without = (client.generate("tiny:base", "turn", system=system, options={"num_predict": 1})
                            for system in ("the light on", ""))
    assert with_system.prompt_eval_count > without.prompt_eval_count
    assert client.generate("tiny:base", "turn", format="json", options={"num_predict": 20}).response.startswith("{")
    whole = client.generate("tiny:base", "turn")
    assert whole.prompt_eval_count + whole.eval_count == 256 or whole.done_reason == "stop"


def test_what_does_not_change_the_answer_is_taken_and_named_once(client, caplog):
    """Home Assistant sends num_ctx, keep_alive and think with every request."""
    with caplog.at_level("INFO", "edgetune.daemon"):
        for _ in range(2):
            client.chat("tiny", ASK, options={"num_gpu": 1})
    assert caplog.text.count("options.num_gpu") == 1
    said = client.chat("tiny", ASK, think=False, keep_alive="-1s", options={"num_ctx": 8192, "num_thread": 4})
    assert said.message.content == TAUGHT
    assert client.generate("tiny", keep_alive=0).done_reason == "unload"
    assert client.chat("tiny").done_reason == "load"
    assert client.generate("tiny", "turn").response == TAUGHT  # it is still there


@pytest.mark.parametrize(("wrong", "says"), [
    ({"think": True}, "think"), ({"options": {"mirostat": 2}}, "mirostat is 2"), ({"options": {"warp": 2}}, "warp"),
    ({"logprobs": True}, "logprobs"), ({"messages": [{"role": "user", "content": "?", "images": [b"x"]}]}, "images")])
@pytest.mark.parametrize("stream", [False, True])
def test_what_would_change_the_answer_is_refused_in_a_sentence(client, wrong, says, stream):
    with pytest.raises(ollama.ResponseError, match=says) as caught:
        list(client.chat(**{"model": "tiny", "messages": ASK, "stream": stream, **wrong}))
    assert caught.value.status_code == 400


def test_errors_are_of_ollamas_shape_and_the_version_is_one_that_clients_accept(http):
    for answer in (http.post("/api/chat", content=b"{"), http.get("/api/nowhere"),
                   http.post("/api/pull", json={"model": "llama3"}),
                   http.post("/api/chat", json={"model": "llama3", "messages": ASK}),
                   http.get("/api/tags", headers={"Host": "evil.example"})):
        assert answer.status_code >= 400
        assert isinstance(answer.json()["error"], str)
    assert isinstance(http.get("/v1/nowhere").json()["error"], dict)
    major, minor, _ = http.get("/api/version").json()["version"].split(".")
    assert (int(major), int(minor)) >= (0, 5)  # since which answers can be held to a schema
