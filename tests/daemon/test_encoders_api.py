"""The API of a daemon whose model is an encoder."""

from __future__ import annotations

import json
import time

import pytest

pytest.importorskip("fastapi")

import httpx
import numpy as np
from daemons import CHAT, PATIENCE, daemon, openai_client
from encoder_daemon import OPTIONS, forms, labelled, write_adapter, write_tiny_encoder
from json_lines import read_lines
from thread_workers import ThreadWorker
from tiny import write_tiny

from edgetune.machine.policy import Policy
from edgetune.serving.classifier import Classifier
from edgetune.training.config import TrainConfig

ASK = "turn on the light c d"
PASSED = {"passed": True, "reason": "for a test"}


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return write_tiny_encoder(tmp_path_factory.mktemp("encoder") / "enc.gguf")


@pytest.fixture(scope="module")
def labels(model, tmp_path_factory):
    return write_adapter(model, tmp_path_factory.mktemp("adapter") / "labels", labelled())


@pytest.fixture(scope="module")
def running(model, labels, tmp_path_factory):
    with daemon(model, tmp_path_factory.mktemp("state"), TrainConfig(**OPTIONS),
                Policy(nice=19, govern=False), start_process=ThreadWorker, learn_options="steps=1") as made:
        adapter = made.service.adapters.add("ftjob-0", labels, "home", PASSED)
        made.service.adapters.promote(adapter.id, "for the test")
        made.service.adapters.rename(adapter.id, "lamps")
        yield made


@pytest.fixture(scope="module")
def client(running):
    with httpx.Client(base_url=running.url, timeout=PATIENCE) as made:
        yield made


@pytest.fixture(scope="module")
def expected(model, labels):
    with Classifier(model, labels, threads=1) as served:
        return served.classify([ASK])[0]


def asked(**fields):
    return {"messages": [{"role": "user", "content": ASK}], **fields}


@pytest.mark.parametrize(("path", "body", "at"), [
    (CHAT, asked(), ("choices", 0, "message", "content")),
    (CHAT, asked(model="lamps", temperature=0.7, seed=3), ("choices", 0, "message", "content")),
    (CHAT, {"messages": [{"role": "user", "content": [{"type": "text", "text": ASK}]}]},
     ("choices", 0, "message", "content")),
    ("/v1/completions", {"prompt": ASK}, ("choices", 0, "text")),
    ("/v1/classify", {"input": ASK}, ("data", 0, "label"))])
def test_each_api_answers_with_the_label(client, expected, path, body, at):
    said = client.post(path, json=body)
    assert said.status_code == 200, said.text
    found = said.json()
    for key in at:
        found = found[key]
    assert found == expected.label


def test_the_answer_has_its_probability_and_counts_tokens(client, expected):
    said = client.post(CHAT, json=asked(logprobs=True, top_logprobs=5)).json()
    token, = said["choices"][0]["logprobs"]["content"]
    assert token["token"] == expected.label
    assert np.exp(token["logprob"]) == pytest.approx(expected.probability, abs=1e-5)
    assert sum(np.exp(one["logprob"]) for one in token["top_logprobs"]) == pytest.approx(1, abs=1e-4)
    usage = said["usage"]
    assert usage["total_tokens"] == usage["prompt_tokens"] + usage["completion_tokens"] > usage["prompt_tokens"] > 0
    assert said["choices"][0]["finish_reason"] == "stop"


def test_an_answer_is_streamed_in_one_piece(running, expected):
    pieces = [chunk.choices[0].delta.content for chunk in openai_client(running.url).chat.completions.create(
        model="enc:latest", messages=asked()["messages"], stream=True) if chunk.choices[0].delta.content]
    assert pieces == [expected.label]


def test_classify_has_the_shape_of_vllm(client, expected):
    said = client.post("/v1/classify", json={"input": [ASK, "turn off the light"], "model": "lamps"}).json()
    assert said["object"] == "list"
    assert said["labels"] == ["lamp_off", "lamp_on"]
    assert [one["index"] for one in said["data"]] == [0, 1]
    first = said["data"][0]
    assert first["label"] == expected.label == said["labels"][int(np.argmax(first["probs"]))]
    assert first["probs"] == pytest.approx(expected.probabilities.tolist(), abs=1e-6)
    assert first["num_classes"] == 2
    assert said["usage"]["total_tokens"] == said["usage"]["prompt_tokens"] > 10
    many = client.post("/v1/classify", json={"input": [ASK] * 200}).json()["data"]
    assert [one["label"] for one in many] == [expected.label] * 200


def test_a_model_that_writes_text_is_refused(tmp_path):
    with daemon(write_tiny(tmp_path / "tiny.gguf", formats="Q8_0"), tmp_path / "state") as writes:
        said = httpx.post(f"{writes.url}/v1/classify", json={"input": "on"}, timeout=PATIENCE)
        assert said.status_code == 400
        assert said.json()["error"]["message"] == ("the model writes text, and no labels; serve an encoder, such as "
                                                   "minilm")
        job = httpx.post(f"{writes.url}/v1/fine_tuning/jobs", timeout=PATIENCE, json={
            "model": "tiny", "training_file": "file-0", "method": {"type": "classify"}})
        assert "cannot learn by the method classify" in job.json()["error"]["message"]


@pytest.mark.parametrize("fields", [{"tools": [{"type": "function", "function": {"name": "lamp"}}]},
                                    {"response_format": {"type": "json_object"}}])
def test_a_form_that_is_not_learned_is_refused(client, fields):
    said = client.post(CHAT, json=asked(**fields))
    assert said.status_code == 400
    assert "enc.gguf" not in said.text
    assert "enc is an encoder" in said.json()["error"]["message"]


@pytest.mark.dev
def test_a_correction_is_learned_over_http(client, running):
    """As a person's app does it: answers are corrected by their ids, and a job is begun, here of the head alone."""
    for row in labelled(40, first=80):
        id = client.post(CHAT, json=asked(messages=[{"role": "user", "content": row["prompt"]}])).json()["id"]
        given = client.post("/v1/feedback", json={"completion_id": id, "correction": row["completion"].upper()})
        assert given.status_code == 200, given.text
    begun = client.post("/v1/learn", json={}).json()
    job = begun["job"] if "job" in begun else begun["id"]
    deadline = time.monotonic() + PATIENCE
    while (found := client.get(f"/v1/fine_tuning/jobs/{job}").json())["status"] not in ("succeeded", "failed"):
        assert time.monotonic() < deadline
        time.sleep(0.1)
    assert found["status"] == "succeeded", found["error"]
    known = client.post("/v1/classify", json={"input": ASK, "model": found["fine_tuned_model"]}).json()["labels"]
    assert known == ["LAMP_OFF", "LAMP_ON"]
    lines = read_lines(running.service.adapters.path(found["fine_tuned_model"]) / "metrics.jsonl")
    assert [line["step"] for line in lines if line["event"] == "step"] == [1]


def test_it_is_shown_like_any_model(client):
    assert client.get("/healthz").json()["status"] == "ok"
    listed = client.get("/v1/adapters").json()["data"]
    assert {name: listed[-1][name] for name in ("structured",)} == {"structured": False}
    serving = client.get("/v1/device").json()["serving"]
    assert serving["requests"] > 0
    assert "edgetune_requests_total" in client.get("/metrics").text
    download = client.get(f"/v1/adapters/{listed[-1]['id']}/download")
    assert download.content[:2] == b"PK"
    page = client.get("/")
    assert page.status_code == 200


def test_rows_are_checked_as_an_encoder_reads_them(client):
    rows = "".join(json.dumps(row) + "\n" for row in [*labelled(20), *forms(2)])
    said = client.post("/v1/files/check", files={"file": ("rows.jsonl", rows)}).json()
    assert said["usable"] == 22
    assert said["longest"] < 40


def test_graders_that_ask_a_model_have_none(client):
    grader = {"type": "score_model", "name": "judge", "model": "enc",
              "input": [{"role": "user", "content": "rate {{ sample.output_text }}"}]}
    said = client.post("/v1/fine_tuning/alpha/graders/run", json={"grader": grader, "model_sample": "on"})
    assert said.status_code == 400, said.text
    assert said.json()["error"]["message"] == ("enc is an encoder, which scores no answers; use a grader without a "
                                               "model")


def test_an_encoders_tokens_stand_between_its_marks(client, running):
    tokenizer = running.service.served.tokenizer
    whole = tokenizer.encode(ASK)
    assert client.post("/tokenize", json={"content": ASK, "add_special": True}).json() == {"tokens": whole}
    pieces = client.post("/tokenize", json={"content": ASK, "with_pieces": True}).json()["tokens"]
    assert [piece["id"] for piece in pieces] == whole[1:-1]
    assert client.post("/detokenize", json={"tokens": whole[1:-1]}).json() == {"content": tokenizer.decode(whole[1:-1])}
