"""Ollama's think: thoughts have a field of their own, of a model that thinks."""

import json

import httpx
import pytest
from daemons import daemon
from thinkers import write_thinker
from tiny import write_tiny

ASK = [{"role": "user", "content": "turn the light"}]


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return write_thinker(tmp_path_factory.mktemp("model") / "Tiny.gguf", opens=True)


@pytest.mark.parametrize("stream", [False, True])
def test_thoughts_are_a_field(http, stream):
    options = {"num_predict": 600, "temperature": 0}
    said = http.post("/api/chat", json={"model": "tiny", "messages": ASK, "think": "low", "options": options,
                                        "stream": stream})
    assert said.status_code == 200, said.text
    lines = [json.loads(line) for line in said.text.splitlines()]
    assert "".join(line["message"].get("thinking", "") for line in lines)
    off = http.post("/api/generate", json={"model": "tiny", "prompt": "turn", "think": False, "stream": False,
                                           "options": {"num_predict": 5, "temperature": 0}}).json()
    assert "thinking" not in off
    assert "thinking" in http.post("/api/show", json={"model": "tiny"}).json()["capabilities"]


def test_a_model_that_does_not_think_refuses(tmp_path):
    with (daemon(write_tiny(tmp_path / "Tiny.gguf", formats="Q8_0"), tmp_path / "state") as running,
          httpx.Client(base_url=running.url, timeout=60) as http):
        told = http.post("/api/chat", json={"model": "tiny", "messages": ASK, "think": True})
        assert "does not support thinking" in told.json()["error"]
        assert "thinking" not in http.post("/api/show", json={"model": "tiny"}).json()["capabilities"]
