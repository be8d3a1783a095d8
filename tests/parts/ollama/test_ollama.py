"""Ollama's calls by its own Python client, as Home Assistant uses them: what it has beyond test_surfaces."""

import json

import numpy as np
import ollama
import pytest
from daemons import PATIENCE, daemon
from services import SMALL, upload
from tiny import write_tiny

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


@pytest.mark.dev
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
    ({"top_logprobs": 2}, "top_logprobs is 2 without"),
    ({"messages": [{"role": "user", "content": "?", "images": [b"x"]}]}, "images")])
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


@pytest.mark.parametrize("path", ["/", "/api/tags", "/api/version"])
def test_whether_it_is_there_is_asked_by_head(http, path):
    """As Ollama's own command does before each other call."""
    said, got = http.head(path), http.get(path)
    assert (said.status_code, said.content) == (200, b"")
    assert said.headers["content-length"] == got.headers["content-length"] == str(len(got.content))


def test_tokens_have_log_probabilities_as_openais_have(client, http):
    options = {"num_predict": 4}
    asked = {"model": "tiny:base", "options": options, "logprobs": True, "top_logprobs": 2}
    expected = http.post("/v1/chat/completions", json={"model": "tiny", "messages": ASK, "max_tokens": 4,
                                                       "logprobs": True, "top_logprobs": 2}).json()
    tokens = expected["choices"][0]["logprobs"]["content"]
    chat = client.chat(messages=ASK, **asked).logprobs
    generated = client.generate(prompt="turn", **asked).logprobs
    streamed = [token for line in client.chat(messages=ASK, stream=True, **asked) for token in line.logprobs or ()]
    for found in (chat, generated, streamed):
        assert [token.token for token in found] == [token["token"] for token in tokens]
        logprobs = [token["logprob"] for token in tokens]
        assert [token.logprob for token in found] == pytest.approx(logprobs, abs=0.05)  # the cache rounds
        assert [len(token.top_logprobs) for token in found] == [2] * len(tokens)
        assert all(token.top_logprobs[0].logprob == pytest.approx(token.logprob) for token in found)  # greedy
    assert client.chat("tiny:base", ASK, options=options).logprobs is None


def test_the_older_route_for_a_vector_gives_the_same_one(client):
    expected = client.embed("tiny", "turn the light").embeddings[0]
    np.testing.assert_allclose(client.embeddings("tiny", "turn the light").embedding, expected, rtol=1e-6)
    assert client.embeddings("tiny", "").embedding == []
    assert len(client.embeddings("tiny", "turn " * 2000).embedding) == len(expected)  # cut
    with pytest.raises(ollama.ResponseError, match="llama3"):
        client.embeddings("llama3", "turn")


def test_a_prompt_continues_the_context_of_an_earlier_answer(client, running):
    """It is answered as /api/chat answers all turns."""
    options = {"num_predict": 6}
    first = client.generate("tiny:base", "turn", options=options)
    tokenizer = running.service.served.tokenizer
    prompt = tokenizer.encode(tokenizer.render(ASK, add_generation_prompt=True), bos=True)
    assert list(first.context) == [*prompt, *tokenizer.encode(first.response, special=False, continues=True)]
    *_, last = client.generate("tiny:base", "turn", stream=True, options=options)
    assert last.context == first.context
    after = [*ASK, {"role": "assistant", "content": first.response}]
    for more, system in (([{"role": "user", "content": "the light"}], None),
                         ([{"role": "system", "content": "on"}, {"role": "user", "content": "off <|im_end|>"}], "on")):
        expected = client.chat("tiny:base", [*after, *more], options=options)
        said = client.generate("tiny:base", more[-1]["content"], system=system, context=first.context, options=options)
        assert said.prompt_eval_count == expected.prompt_eval_count
        assert said.response == expected.message.content
        assert list(said.context[: len(first.context)]) == list(first.context)
    assert client.generate("tiny:base", "turn", raw=True, options=options).context is None


@pytest.mark.parametrize(("wrong", "says"), [
    ({"context": [1, 10**6]}, "a token id is 1000000"), ({"context": [1], "raw": True}, "context is given with raw"),
    ({"template": "{{ .Prompt }}"}, "template is '{{ .Prompt }}', and the model's own chat template is used here")])
def test_what_generate_cannot_do_is_refused_in_a_sentence(client, wrong, says):
    with pytest.raises(ollama.ResponseError, match=says) as caught:
        client.generate("tiny", "turn", **wrong)
    assert caught.value.status_code == 400


def test_the_template_that_show_names_is_taken(client):
    assert client.generate("tiny", "turn", template=client.show("tiny").template).response == TAUGHT


def test_a_model_that_answers_here_is_pulled_and_no_other(client, running):
    adapter = running.service.adapters.serving
    for name in ("tiny", "tiny:latest", "tiny:base", adapter):
        steps = list(client.pull(name, stream=True))
        assert [step.status for step in steps][0::4] == ["pulling manifest", "success"]
        whole = steps[1]
        listed = next(tag for tag in client.list().models if tag.model in (name, name + ":latest"))
        assert (whole.digest, whole.completed) == (f"sha256:{listed.digest}", whole.total)
        assert whole.total == listed.size
        assert client.pull(name).status == "success"
    for stream in (False, True):
        with pytest.raises(ollama.ResponseError, match="llama3") as caught:
            list(client.pull("llama3", stream=stream))
        assert caught.value.status_code == 404


@pytest.mark.dev
def test_an_answer_with_a_format_ends_if_no_limit_is_given(tmp_path):
    """Its model finds no end by itself: after 1,024 tokens the JSON is closed. The context holds more."""
    model = write_tiny(tmp_path / "Wide.gguf", formats="Q8_0", n_context=1280)
    with daemon(model, tmp_path / "state", context=1280) as wide, \
            ollama.Client(host=wide.url, timeout=PATIENCE) as client:
        said = client.chat("wide:base", ASK, format="json")
        assert said.eval_count <= 1024
        assert isinstance(json.loads(said.message.content), dict)
        assert client.chat("wide:base", ASK, format="json", options={"num_predict": 9}).eval_count <= 9


def test_a_room_is_not_repeated_for_ever(client):
    """As Home Assistant's AI task asks, without a limit."""
    schema = {"type": "object", "required": ["rooms"], "additionalProperties": False, "properties": {
        "rooms": {"type": "array", "items": {"type": "string", "enum": ["hall", "attic"]}}}}
    for words in ("turn", "the light", "on"):
        said = client.chat("tiny:base", [{"role": "user", "content": words}], format=schema)
        assert said.done_reason == "stop"
        rooms = json.loads(said.message.content)["rooms"]
        assert len(rooms) <= 32
        assert set(rooms) <= {"hall", "attic"}
