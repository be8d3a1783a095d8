"""Each request that docs/reference/http-api.md shows, put to a daemon. The answer has the fields that it shows."""

from __future__ import annotations

import json

import pytest

pytest.importorskip("fastapi")

import httpx
from api_examples import ADAPTER, ANSWER, ASK, ERROR, EXAMPLES, FEEDBACK, FILE, JOB, ROW
from counting import OPTIONS, dataset
from daemons import CHAT, PATIENCE, daemon
from encoder_daemon import labelled, write_adapter, write_tiny_encoder
from part_tables import options_of_parts
from thread_workers import ThreadWorker
from tiny import write_tiny

from edgetune.formats.bundle import open_bundle
from edgetune.training import run as train
from edgetune.training.config import TrainConfig

PASSED = {"passed": True, "reason": "it is better"}


@pytest.fixture(scope="module")
def running(tmp_path_factory):
    """A daemon with an active adapter, and with corrections of enough questions that some are held out."""
    folder = tmp_path_factory.mktemp("examples")
    model = write_tiny(folder / "model.gguf", formats="Q8_0", n_context=512)
    train.run(open_bundle(model), dataset(8, 0), folder / "run", TrainConfig(**{**OPTIONS, "steps": 1}))
    encoder = write_tiny_encoder(folder / "encoder.gguf")
    with daemon(model, folder / "state", context=256, embeddings=str(encoder), **options_of_parts(model, folder),
                start_process=ThreadWorker) as running:
        for number in range(20):
            running.service.feedback.add(prompt=f"lamp {number} on", correction="on")
        yield running


@pytest.fixture(scope="module")
def client(running):
    with httpx.Client(base_url=running.url, timeout=PATIENCE) as made:
        yield made


@pytest.fixture(scope="module")
def of_encoder(tmp_path_factory):
    """A client of a daemon with an encoder, whose adapter is active."""
    folder = tmp_path_factory.mktemp("encoder")
    model = write_tiny_encoder(folder / "model.gguf")
    with daemon(model, folder / "state", start_process=ThreadWorker) as running:
        made = running.service.adapters.add("ftjob-0", write_adapter(model, folder / "run", labelled()), "home", PASSED)
        running.service.adapters.promote(made.id, "for the test")
        with httpx.Client(base_url=running.url, timeout=PATIENCE) as client:
            yield client


@pytest.fixture(scope="module")
def adapter(running):
    adapters = running.service.adapters
    made = adapters.add("ftjob-0", running.service.config.folder().parent / "run", "home", PASSED).id
    adapters.promote(made, "for the test")
    return made


@pytest.fixture(scope="module")
def made_elsewhere(running):
    return (running.service.config.folder().parent / "run" / "adapter.gguf").read_bytes()


def upload(client, content, path="/v1/files"):
    form = {"purpose": "fine-tune"} if path == "/v1/files" else {}
    return client.post(path, data=form, files={"file": ("rows.jsonl", content)})


def ids(client, adapter):
    """{an id of the examples: that of this daemon}, of things that exist."""
    rows = "".join(json.dumps({"prompt": f"lamp {number}", "completion": "on"}) + "\n" for number in range(12))
    file = upload(client, rows).json()["id"]
    job = client.post("/v1/fine_tuning/jobs", json={"model": "model", "training_file": file}).json()["id"]
    given = client.post("/v1/feedback", json={"prompt": "lamp", "correction": "on"}).json()["id"]
    form = {"type": "json_schema", "json_schema": {"name": "word", "schema": {"enum": ["on"]}}}  # not empty
    answer = client.post(CHAT, json={"messages": ASK, "max_tokens": 16, "response_format": form}).json()["id"]
    return {FILE: file, JOB: job, FEEDBACK: given, ANSWER: answer, ADAPTER: adapter}


def same_shape(shown, said, place="answer"):
    """Whether all that is shown is said, with values of the same kind; null is shown for what may be null."""
    if isinstance(shown, dict):
        assert isinstance(said, dict), place
        for name in shown:
            assert name in said, f"{place}.{name}"
            same_shape(shown[name], said[name], f"{place}.{name}")
    elif isinstance(shown, list):
        assert isinstance(said, list), place
        if shown and said:
            same_shape(shown[0], said[0], f"{place}[0]")
    elif shown is not None and said is not None:
        kinds = (int, float) if isinstance(shown, int | float) and not isinstance(shown, bool) else type(shown)
        assert isinstance(said, kinds), f"{place} is {said!r}"


@pytest.mark.dev
@pytest.mark.parametrize("example", EXAMPLES, ids=lambda example: f"{example.route}: {example.what}")
def test_an_example_is_answered(request, running, client, adapter, made_elsewhere, example):
    if example.of_encoder:
        client = request.getfixturevalue("of_encoder")
    text = json.dumps({"path": example.asked, "body": example.body})
    if example.route.endswith("/evaluate"):  # the active adapter is not compared with itself
        running.service.adapters.promote(None, "for the test")
    if any(name in text for name in (FILE, JOB, FEEDBACK, ANSWER, ADAPTER)):
        for name, real in ids(client, adapter).items():
            text = text.replace(name, real)
    asked = json.loads(text)
    content = ROW if example.sends == "rows.jsonl" else made_elsewhere
    said = (upload(client, content, example.asked) if example.is_upload else
            client.request(example.method, asked["path"], json=asked["body"]))
    assert said.status_code == 200, said.text
    if example.answer is not None:
        same_shape(example.answer, said.json())


def test_the_error_is_one(client):
    said = client.post(CHAT, json={})
    assert said.status_code == 400
    same_shape(ERROR, said.json())
    assert {**ERROR["error"], "message": ""} == {**said.json()["error"], "message": ""}


@pytest.mark.dev
def test_examples_are_of_routes_that_exist(client):
    paths = client.get("/openapi.json").json()["paths"]
    for example in EXAMPLES:
        method, path = example.route.split()
        assert method.lower() in paths[path]


def test_every_route_and_every_field_is_described(client):
    """By a sentence; a value that is always the same says itself what it is."""
    found = client.get("/openapi.json").json()
    for path, operations in found["paths"].items():
        for method, operation in operations.items():
            assert operation.get("description"), f"{method} {path}"
            for query in operation.get("parameters", []):
                assert query["in"] == "path" or query.get("description"), f"{method} {path}?{query['name']}"
    for name, schema in found["components"]["schemas"].items():
        for field, one in schema.get("properties", {}).items():
            assert one.get("description") or "const" in one or one.get("type") == "null", f"{name}.{field}"
