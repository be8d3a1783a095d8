"""What is said of a request that does not fit: in words of ours, with the place, the value and what is expected."""

from __future__ import annotations

import random
import re
from collections.abc import Iterator
from typing import Any

import pytest

pytest.importorskip("fastapi")

import httpx
from daemons import PATIENCE, daemon
from tiny import write_tiny

CHAT = "/v1/chat/completions"
COMPLETIONS = "/v1/completions"
JOBS = "/v1/fine_tuning/jobs"
FEEDBACK = "/v1/feedback"
USER = [{"role": "user", "content": "a"}]
JOB = {"model": "tiny", "training_file": "file-1"}
THEIRS = re.compile(r"\bInput\b|after validation|\bvalid (string|number|integer|list|dictionary|boolean)|"
                    r"unable to|function-|literal\[|\bList should\b|\bString should\b|instance of", re.IGNORECASE)


@pytest.fixture(scope="module")
def client(tmp_path_factory: pytest.TempPathFactory) -> Iterator[httpx.Client]:
    folder = tmp_path_factory.mktemp("validation")
    model = write_tiny(folder / "tiny.gguf", formats="Q8_0", n_context=64)
    with daemon(model, folder / "state") as running, httpx.Client(base_url=running.url, timeout=PATIENCE) as made:
        yield made


def said(client: httpx.Client, path: str, body: Any) -> tuple[str, str | None]:
    refused = client.post(path, json=body)
    assert refused.status_code == 400, refused.text
    error = refused.json()["error"]
    return error["message"], error["param"]


@pytest.mark.parametrize(("path", "body", "says"), [
    (CHAT, {"messages": []}, "messages has 0 items; it must have 1 item or more"),
    (CHAT, {"messages": USER, "stop": ["a"] * 17}, "stop has 17 items; it must have 16 items or fewer"),
    (CHAT, {"messages": USER, "stop": 3}, "stop is 3; it must be text or a list"),
    (CHAT, {"messages": USER, "n": 0}, "n is 0; it must be 1 or more"),
    (CHAT, {"messages": USER, "temperature": "1"}, "temperature is '1'; it must be a number"),
    (CHAT, {"messages": USER, "seed": 1.5}, "seed is 1.5; it must be an integer"),
    (CHAT, {"messages": USER, "stream": 1}, "stream is 1; it must be true or false"),
    (CHAT, {"messages": USER, "logprobs": 1}, "logprobs is 1; it must be true or false"),
    (CHAT, {"messages": USER, "stream_options": 3}, "stream_options is 3; it must be an object"),
    (CHAT, {"messages": USER, "tools": [1]}, "tools.0 is 1; it must be an object"),
    (CHAT, {"messages": [{"role": "user", "content": 5}]}, "messages.0.content is 5; it must be text or a list"),
    (CHAT, {"messages": [{"content": "a"}]}, "messages.0.role is missing; /openapi.json says what can be given"),
    (COMPLETIONS, {"prompt": 7}, "prompt is 7; it must be text or a list"),
    (JOBS, {**JOB, "integrations": [1]}, "integrations has 1 item; it must be empty"),
    (JOBS, {**JOB, "hyperparameters": {"rank": 0}}, "hyperparameters.rank is 0; it must be 1 or more"),
    (JOBS, {**JOB, "hyperparameters": {"batch_size": "x"}},
     "hyperparameters.batch_size is 'x'; it must be an integer or 'auto'"),
    (JOBS, {**JOB, "hyperparameters": {"n_epochs": 0}}, "hyperparameters.n_epochs is 0; it must be 1 or more"),
    (JOBS, {**JOB, "hyperparameters": {"epochs": "many"}},
     "hyperparameters.epochs is 'many'; it must be a number or 'auto'"),
    (JOBS, {**JOB, "hyperparameters": {"patience": -1}}, "hyperparameters.patience is -1; it must be 0 or more"),
    (JOBS, {**JOB, "hyperparameters": {"learning_rate_multiplier": 0}},
     "hyperparameters.learning_rate_multiplier is 0; it must be more than 0"),
    (FEEDBACK, {"prompt": "a", "rating": "good"}, "rating is 'good'; it must be 'up' or 'down'"),
])
def test_one_sentence_says_what_and_what_is_expected(client, path, body, says):
    message, param = said(client, path, body)
    assert message == says
    assert param == says.split(" ")[0]


@pytest.mark.parametrize(("path", "body", "wrong", "known"), [
    (FEEDBACK, {"prompt": "a", "answr": "b"}, "answr", ["answer", "correction", "completion_id"]),
    (CHAT, {"messages": USER, "max_token": 3}, "max_token", ["max_tokens", "temperature"]),
    (CHAT, {"messages": USER, "stream_options": {"usage": True}}, "usage", ["include_usage"]),
    (JOBS, {**JOB, "hyperparameters": {"ranks": 3}}, "ranks", ["rank", "n_epochs", "lr"]),
])
def test_a_wrong_field_is_told_the_right_ones(client, path, body, wrong, known):
    message, _ = said(client, path, body)
    assert message.startswith(f"there is no '{wrong}'")
    assert all(re.search(rf"\b{name}\b", message) for name in known), message


@pytest.mark.parametrize("path", ["/v1/files?limit=x", "/v1/files?limit=0", "/v1/feedback?limit=101",
                                  "/v1/fine_tuning/jobs?limit=1e30", "/v1/files?limit=" + "9" * 5000])
def test_a_query_is_judged_in_the_same_words(client, path):
    refused = client.get(path)
    assert refused.status_code == 400
    assert re.match(r"limit is .*; it must be (an integer|1 or more|100 or less)$", refused.json()["error"]["message"])


SOUND = [(CHAT, {"messages": USER, "tools": [{}], "stop": ["x"], "seed": 1, "stream_options": {"include_usage": True},
                 "response_format": {"type": "text"}, "temperature": 0.5, "tool_choice": "auto", "n": 1, "top_k": 3}),
         (COMPLETIONS, {"prompt": [3, 4], "stream": False, "stop": "x", "max_tokens": 3, "min_p": 0.1}),
         (JOBS, {**JOB, "method": {"type": "supervised", "supervised": {"hyperparameters": {
             "rank": 4, "n_epochs": 1, "batch_size": "auto", "learning_rate_multiplier": 2.0, "schedule": "linear",
             "targets": "all", "dropout": 0.1, "shuffle": True, "patience": "auto"}}}, "metadata": {"a": "b"},
              "integrations": []}),
         (FEEDBACK, {"messages": USER, "tools": [{}], "answer": "a", "rating": "up", "model": "m"})]
ODD: list[Any] = [None, True, -1, 0, 1.5, 10**30, -1e308, "", "x" * 2000, [], {}, [[]], [None], {"a": 1}, [1, "a"]]


def changes(value: Any, odd: Any) -> Iterator[Any]:
    """Copies in which one thing, at any depth, is `odd`."""
    yield odd
    if isinstance(value, dict):
        for key in value:
            yield from ({**value, key: changed} for changed in changes(value[key], odd))
        yield {**value, "unknown": odd}
    if isinstance(value, list):
        for i, item in enumerate(value):
            yield from ([*value[:i], changed, *value[i + 1:]] for changed in changes(item, odd))


def test_no_word_of_the_library_that_checks_comes_through(client):
    """Whatever is put wherever in requests of every kind."""
    dice = random.Random(0)
    met = 0
    for path, body in SOUND:
        cases = [changed for odd in ODD for changed in changes(body, odd)]
        for changed in dice.sample(cases, min(len(cases), 150)):
            answer = client.post(path, json=changed)
            if answer.status_code == 400:
                met += 1
                message = answer.json()["error"]["message"]
                assert not THEIRS.search(message), message
                assert len(message) < 1200, message
    assert met > 200


def test_a_body_of_too_many_values_is_refused_before_each_is_complained_of(client):
    refused = client.post(CHAT, content=b'{"messages": [' + b",".join([b"0"] * 40_000) + b"]}",
                          headers={"Content-Type": "application/json"})
    assert refused.status_code == 413
    assert "32768 values" in refused.json()["error"]["message"]


def test_each_measurement_of_memory_says_whose_it_is(client):
    helps = dict(re.findall(r"# HELP edgetune_memory_(\w+)_bytes (.*)", client.get("/metrics").text))
    assert set(helps) == {"budget", "used", "available"}
    assert "daemon" in helps["used"]
    assert "machine" in helps["available"]
