"""Thinking over HTTP: reasoning_effort, reasoning_budget, and the fields of thoughts."""

import json

import httpx
import pytest
from daemons import CHAT, daemon
from thinkers import END_ID, write_thinker
from tiny import write_tiny

ASK = [{"role": "user", "content": "turn the light"}]
NEVER = {str(token): -100 for token in (0, 1, 2, END_ID)}  # the model itself ends neither thoughts nor answer


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return write_thinker(tmp_path_factory.mktemp("model") / "Tiny.gguf", opens=True)


@pytest.fixture(scope="module")
def plain(tmp_path_factory):
    folder = tmp_path_factory.mktemp("plain")
    with daemon(write_tiny(folder / "Tiny.gguf", formats="Q8_0"), folder / "state") as made:
        yield made


def chat(http, **options):
    body = {"messages": ASK, "max_tokens": 12, "temperature": 1.0, "seed": 1, "logit_bias": NEVER, **options}
    said = http.post(CHAT, json=body)
    assert said.status_code == 200, said.text
    return said


def test_thoughts_are_given_apart_from_the_answer(http):
    message = chat(http, reasoning_budget=4).json()["choices"][0]["message"]
    assert message["reasoning_content"]
    assert message["content"]
    assert "think>" not in message["content"] + message["reasoning_content"]
    endless = chat(http).json()["choices"][0]["message"]
    assert endless["content"] == ""
    assert endless["reasoning_content"]
    for off in ({"reasoning_effort": "none"}, {"reasoning_budget": 0}):
        none = chat(http, **off).json()["choices"][0]["message"]
        assert none["reasoning_content"] is None
        assert none["content"]


def test_a_stream_has_both_in_their_order(http):
    whole = chat(http, reasoning_budget=4).json()["choices"][0]["message"]
    events = [json.loads(line[6:]) for line in chat(http, reasoning_budget=4, stream=True).text.splitlines()
              if line.startswith("data: {")]
    deltas = [event["choices"][0]["delta"] for event in events]
    assert "".join(delta.get("reasoning_content") or "" for delta in deltas) == whole["reasoning_content"]
    assert "".join(delta.get("content") or "" for delta in deltas) == whole["content"]
    said = [i for i, delta in enumerate(deltas) if delta.get("content")]
    thought = [i for i, delta in enumerate(deltas) if delta.get("reasoning_content")]
    assert max(thought) <= min(said)


def test_a_rated_answer_is_learned_without_its_thoughts(http):
    said = chat(http, reasoning_budget=4).json()
    given = http.post("/v1/feedback", json={"completion_id": said["id"], "rating": "up"}).json()
    row = http.get(f"/v1/feedback/{given['id']}").json()["row"]
    assert row["messages"][-1]["content"] == said["choices"][0]["message"]["content"]


def test_a_model_that_does_not_think_refuses(plain):
    with httpx.Client(base_url=plain.url, timeout=60) as http:
        for options in ({"reasoning_effort": "low"}, {"reasoning_budget": 5}, {"reasoning_budget": -1}):
            said = http.post(CHAT, json={"messages": ASK, "max_tokens": 3, **options})
            assert said.status_code == 400
            assert "tiny does not support thinking" in said.json()["error"]["message"]
        for options in ({"reasoning_effort": "none"}, {"reasoning_budget": 0}):
            assert http.post(CHAT, json={"messages": ASK, "max_tokens": 3, **options}).status_code == 200


def test_effort_and_budget_are_not_both(http):
    said = http.post(CHAT, json={"messages": ASK, "reasoning_effort": "low", "reasoning_budget": 3})
    assert said.status_code == 400
    assert "both given" in said.json()["error"]["message"]
