"""Ollama's API of a daemon whose model is an encoder: an answer is a label."""

import json

import numpy as np
import pytest
from encoder_daemon import labelled, write_adapter, write_tiny_encoder

from edgetune.serving.classifier import Classifier

ASK = "turn on the light c d"


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return write_tiny_encoder(tmp_path_factory.mktemp("encoder") / "enc.gguf")


@pytest.fixture(scope="module")
def label(running, model, tmp_path_factory):
    """Of ASK, by the active adapter."""
    folder = write_adapter(model, tmp_path_factory.mktemp("adapter") / "labels", labelled())
    adapters = running.service.adapters
    adapters.promote(adapters.add("ftjob-0", folder, "home", {"passed": True, "reason": "for a test"}).id, "test")
    with Classifier(model, folder, threads=1) as served:
        return served.classify([ASK])[0].label


def test_an_answer_is_the_label(http, label):
    asked = {"model": "enc", "messages": [{"role": "user", "content": ASK}], "stream": False}
    assert http.post("/api/chat", json=asked).json()["message"]["content"] == label
    lines = http.post("/api/generate", json={"model": "enc", "prompt": ASK}).text.splitlines()
    assert [json.loads(line)["response"] for line in lines] == [label, ""]
    said = http.post("/api/generate", json={"model": "enc", "prompt": ASK, "stream": False, "context": [1]})
    assert said.status_code == 400
    assert "context is given, and the model reads one message only" in said.json()["error"]


def test_it_makes_vectors_and_says_so(http):
    texts = ["turn on the light", "kitchen"]
    said = http.post("/v1/embeddings", json={"input": texts}).json()["data"]
    ours = http.post("/api/embed", json={"model": "enc", "input": texts}).json()["embeddings"]
    assert np.allclose(ours, [one["embedding"] for one in said], atol=1e-7)
    shown = http.post("/api/show", json={"model": "enc"}).json()
    assert shown["capabilities"] == ["completion", "embedding"]
    assert shown["details"]["family"] == "bert"
    assert http.get("/api/ps").json()["models"][0]["context_length"] == 96
