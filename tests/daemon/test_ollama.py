"""Ollama's calls by its own Python client, as Home Assistant uses them, against one daemon."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

pytest.importorskip("fastapi")
pytest.importorskip("ollama")

import httpx
import ollama
from daemons import PATIENCE, Daemon, daemon
from services import SMALL, upload
from tiny import write_tiny

from edgetune.serving.llama import LlamaModel

LAMP = {"type": "function", "function": {"name": "lamp", "description": "a lamp", "parameters": {
    "type": "object", "properties": {"on": {"type": "boolean"}}, "required": ["on"]}}}
CALL = '<tool_call>{"name": "lamp", "arguments": {"on": true}}</tool_call>'
CALLING = [{"role": "user", "content": "the lamp"}]
ASK = [{"role": "user", "content": "turn"}]
TAUGHT = "the light off"


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny(tmp_path_factory.mktemp("model") / "Tiny.gguf", formats="Q8_0", n_context=256)


@pytest.fixture(scope="module")
def running(model: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Daemon]:
    """In service is an adapter of two steps. Corrections answer: TAUGHT, and a call where the lamp is shown."""
    with daemon(model, tmp_path_factory.mktemp("daemon") / "state") as made:
        service = made.service
        job = service.jobs.create("tiny", upload(service), hyperparameters={**SMALL, "steps": 2})
        job = service.jobs.wait(job.id, PATIENCE)
        assert job.status == "succeeded", job.error
        service.adapters.promote(str(job.result), "for the test")
        sent = ollama.Tool(**LAMP).model_dump(exclude_none=True)
        service.feedback.add(messages=ASK, answer="", correction=TAUGHT, model="tiny")
        service.feedback.add(messages=CALLING, tools=[sent], answer="", correction=CALL, model="tiny")
        yield made


@pytest.fixture(scope="module")
def client(running: Daemon) -> Iterator[ollama.Client]:
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
    assert shown.details.family == "llama"
    assert shown.details.quantization_level == "Q8_0"
    assert shown.modelinfo["general.architecture"] == "llama"
    assert shown.modelinfo["llama.context_length"] == 256
    assert "<|im_start|>" in shown.template
    with pytest.raises(ollama.ResponseError) as caught:
        client.show("llama3")
    assert caught.value.status_code == 404
    assert "llama3" in caught.value.error


def test_a_chat_says_what_llama_cpp_says(client, model):
    """A name without a tag is what is in service; NAME:base the base alone."""
    said = client.chat("tiny", ASK, options={"num_predict": 20})
    assert (said.message.content, said.done, said.done_reason, said.model) == (TAUGHT, True, "stop", "tiny")
    base = client.chat("tiny:base", ASK, options={"num_predict": 8})
    with LlamaModel(model, threads=1) as served:
        assert "".join(served.chat(ASK, max_tokens=8)) == base.message.content != TAUGHT
        tokens = served.tokenizer.encode(served.tokenizer.render(ASK, add_generation_prompt=True), bos=True)
    assert base.prompt_eval_count == len(tokens)
    assert (base.eval_count, base.done_reason) == (8, "length")
    assert 0 < base.eval_duration < base.total_duration
    assert base.prompt_eval_duration > 0


def test_a_stream_has_the_same_words(client):
    lines = list(client.chat("tiny:latest", ASK, stream=True))
    assert "".join(line.message.content for line in lines) == TAUGHT
    assert [line.done for line in lines] == [False] * (len(lines) - 1) + [True]
    assert lines[-1].done_reason == "stop"
    assert lines[-1].eval_count > 2
    assert all(line.eval_count is None for line in lines[:-1])
    options = {"num_predict": 60}
    whole = client.generate("tiny:base", "turn", options=options)
    pieces = list(client.generate("tiny:base", "turn", options=options, stream=True))
    assert len(pieces) > 3
    assert "".join(piece.response for piece in pieces) == whole.response
    assert pieces[-1].eval_count == whole.eval_count


def test_what_is_sent_without_options_streams_whatever_its_content_type(running):
    """As `curl -d` sends it."""
    answer = httpx.post(f"{running.url}/api/chat", content=json.dumps({"model": "tiny", "messages": ASK}),
                        headers={"Content-Type": "application/x-www-form-urlencoded"}, timeout=PATIENCE)
    assert answer.headers["content-type"] == "application/x-ndjson"
    lines = [json.loads(line) for line in answer.text.splitlines()]
    assert "".join(line["message"]["content"] for line in lines) == TAUGHT
    assert lines[0]["message"]["role"] == "assistant"
    assert lines[0]["created_at"].endswith("Z")


def test_generate_uses_the_template_unless_raw(client, running):
    service = running.service
    assert client.generate("tiny", "turn").response == TAUGHT
    prompt = service.served.tokenizer.render(ASK, add_generation_prompt=True)
    chat, raw = (client.generate("tiny:base", given, raw=raw, options={"num_predict": 8})
                 for given, raw in (("turn", False), (str(prompt), True)))
    assert (chat.response, chat.prompt_eval_count) == (raw.response, raw.prompt_eval_count)
    with_system, without = (client.generate("tiny:base", "turn", system=system, options={"num_predict": 1})
                            for system in ("the light on", ""))
    assert with_system.prompt_eval_count > without.prompt_eval_count


@pytest.mark.parametrize("stream", [False, True])
def test_tools_are_called_and_their_results_go_back(client, stream):
    """As Home Assistant does it: the call comes whole, with its arguments as an object."""
    said = client.chat("tiny", CALLING, tools=[LAMP], stream=stream)
    lines = list(said) if stream else [said]
    calls = [call for line in lines for call in line.message.tool_calls or ()]
    assert [(call.function.name, call.function.arguments) for call in calls] == [("lamp", {"on": True})]
    assert not "".join(line.message.content or "" for line in lines)
    assert lines[-1].done_reason == "stop"
    more = [*CALLING, {"role": "assistant", "content": "", "tool_calls": [call.model_dump() for call in calls]},
            {"role": "tool", "content": "done", "tool_name": "lamp"}]
    after = client.chat("tiny", more, tools=[LAMP], options={"num_predict": 1})
    assert after.prompt_eval_count > lines[-1].prompt_eval_count


@pytest.mark.parametrize("stream", [False, True])
def test_answers_obey_a_schema(client, stream):
    """As the tasks of Home Assistant ask: the base alone never says JSON."""
    schema = {"type": "object", "properties": {"on": {"type": "boolean"}, "where": {"enum": ["hall", "attic"]}},
              "required": ["on", "where"], "additionalProperties": False}
    said = client.chat("tiny:base", ASK, format=schema, stream=stream)
    found = json.loads("".join(line.message.content for line in (said if stream else [said])))
    assert found.keys() == {"on", "where"}
    assert type(found["on"]) is bool
    assert found["where"] in ("hall", "attic")
    assert client.generate("tiny:base", "turn", format="json", options={"num_predict": 20}).response.startswith("{")


def test_penalties_change_what_is_said(client):
    plain, penalized = (client.generate("tiny:base", "turn", options={"num_predict": 40, **more}).response
                        for more in ({}, {"repeat_penalty": 1.9, "repeat_last_n": -1}))
    assert plain != penalized


def test_sampling_comes_again_with_its_seed(client):
    said = [client.chat("tiny:base", ASK, options={"seed": seed, "temperature": 1.5, "top_p": 1.0, "top_k": 0,
                                                   "min_p": 0.0, "num_predict": 12}).message.content
            for seed in (1, 1, 1, 2)]
    assert said[1] == said[2] != said[3]  # the first one may find another cache


def test_an_answer_ends_before_a_stop_and_by_default_at_the_end_of_the_context(client):
    whole = client.generate("tiny:base", "turn")
    assert whole.prompt_eval_count + whole.eval_count == 256 or whole.done_reason == "stop"
    stop = whole.response[3:5]
    cut = client.generate("tiny:base", "turn", options={"stop": [stop]})
    assert (cut.response, cut.done_reason) == (whole.response.partition(stop)[0], "stop")


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
    ({"think": True}, "think"), ({"options": {"mirostat": 2}}, "mirostat"), ({"options": {"warp": 2}}, "warp"),
    ({"options": {"temperature": -1}}, "temperature"), ({"options": {"num_predict": 0}}, "max_tokens"),
    ({"logprobs": True}, "logprobs"),
    ({"messages": [{"role": "user", "content": "what?", "images": [b"x"]}]}, "images"),
    ({"messages": [{"role": "user", "content": "the light " * 500}]}, "context")])
def test_what_would_change_the_answer_is_refused_in_a_sentence(client, wrong, says):
    for stream in (False, True):
        with pytest.raises(ollama.ResponseError) as caught:
            list(client.chat(**{"model": "tiny", "messages": ASK, "stream": stream, **wrong}))
        assert caught.value.status_code == 400
        assert says in caught.value.error


def test_errors_are_of_ollamas_shape(running):
    for answer in (httpx.post(f"{running.url}/api/chat", content=b"{"), httpx.get(f"{running.url}/api/nowhere"),
                   httpx.post(f"{running.url}/api/pull", json={"model": "llama3"}),
                   httpx.post(f"{running.url}/api/chat", json={"model": "llama3", "messages": ASK}),
                   httpx.get(f"{running.url}/api/tags", headers={"Host": "evil.example"})):
        assert answer.status_code >= 400
        assert isinstance(answer.json()["error"], str)
    assert isinstance(httpx.get(f"{running.url}/v1/nowhere").json()["error"], dict)


def test_the_version_is_one_that_clients_accept(running):
    major, minor, _ = httpx.get(f"{running.url}/api/version").json()["version"].split(".")
    assert (int(major), int(minor)) >= (0, 5)  # since which answers can be held to a schema
