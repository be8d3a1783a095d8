"""Each request that docs/reference/http-api.md shows, put to a daemon."""

from __future__ import annotations

import json

import pytest

pytest.importorskip("fastapi")

import httpx
from api_examples import ANSWER, ASK, EXAMPLES, FEEDBACK, FILE, JOB
from daemons import CHAT, PATIENCE, daemon
from tiny import write_tiny

ROW = {"prompt": "lamp on", "completion": "on"}


@pytest.fixture(scope="module")
def client(tmp_path_factory):
    folder = tmp_path_factory.mktemp("examples")
    model = write_tiny(folder / "model.gguf", formats="Q8_0", n_context=512)
    with daemon(model, folder / "state", context=256) as running, httpx.Client(
            base_url=running.url, timeout=PATIENCE) as made:
        yield made


@pytest.fixture(scope="module", autouse=True)
def corrections(client):
    """Of so many questions that some are held out, as learning requires."""
    for number in range(20):
        client.post("/v1/feedback", json={"prompt": f"lamp {number} on", "correction": "on"})


def ids(client):
    """{an id of the examples: that of this daemon}, of things that exist."""
    rows = "".join(json.dumps({**ROW, "prompt": f"lamp {number}"}) + "\n" for number in range(12))
    file = client.post("/v1/files", data={"purpose": "fine-tune"}, files={"file": ("rows.jsonl", rows)}).json()["id"]
    job = client.post("/v1/fine_tuning/jobs", json={"model": "model", "training_file": file}).json()["id"]
    given = client.post("/v1/feedback", json={"prompt": "lamp", "correction": "on"}).json()["id"]
    form = {"type": "json_schema", "json_schema": {"name": "word", "schema": {"enum": ["on"]}}}  # not empty
    answer = client.post(CHAT, json={"messages": ASK, "max_tokens": 16, "response_format": form}).json()["id"]
    return {FILE: file, JOB: job, FEEDBACK: given, ANSWER: answer}


@pytest.mark.parametrize("example", EXAMPLES, ids=lambda example: f"{example.route}: {example.what}")
def test_an_example_is_answered(client, example):
    text = json.dumps({"path": example.asked, "body": example.body})
    if any(name in text for name in (FILE, JOB, FEEDBACK, ANSWER)):
        for name, real in ids(client).items():
            text = text.replace(name, real)
    asked = json.loads(text)
    said = client.request(example.method, asked["path"], json=asked["body"])
    assert said.status_code == 200, said.text


def test_examples_are_of_routes_that_exist(client):
    paths = client.get("/openapi.json").json()["paths"]
    for example in EXAMPLES:
        method, path = example.route.split()
        assert method.lower() in paths[path]
