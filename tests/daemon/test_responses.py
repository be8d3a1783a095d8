"""/v1/responses by OpenAI's client: text, items, tools, streams. What is said is compared with /v1/chat/completions and
with llama.cpp; the official client reads every event.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Literal

import pytest

pytest.importorskip("fastapi")
pytest.importorskip("openai")

import openai
from daemons import Daemon, daemon, openai_client
from pydantic import BaseModel
from tiny import write_tiny

from edgetune.serving.llama import LlamaModel

LAMP = {"type": "function", "name": "lamp", "description": "a lamp", "strict": True, "parameters": {
    "type": "object", "properties": {"on": {"type": "boolean"}}, "required": ["on"], "additionalProperties": False}}
CHAT_LAMP = {"type": "function", "function": {key: LAMP[key] for key in ("name", "description", "parameters")}}
CALL = '<tool_call>{"name": "lamp", "arguments": {"on": true}}</tool_call>'
TAUGHT = "the light off"


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny(tmp_path_factory.mktemp("model") / "Tiny.gguf", formats="Q8_0", n_context=1024)


@pytest.fixture(scope="module")
def running(model: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Daemon]:
    """Corrections answer two questions, one with text and one with two calls: the model itself says nothing."""
    with daemon(model, tmp_path_factory.mktemp("daemon") / "state") as made:
        feedback = made.service.feedback
        feedback.add(messages=[{"role": "user", "content": "turn"}], answer="", correction=TAUGHT, model="tiny")
        feedback.add(messages=[{"role": "user", "content": "the lamp"}], tools=[CHAT_LAMP], answer="",
                     correction=f"now {CALL}\n{CALL}", model="tiny")
        yield made


@pytest.fixture(scope="module")
def client(running: Daemon) -> Iterator[openai.OpenAI]:
    with openai_client(running.url) as made:
        yield made


def test_text_is_answered(client):
    said = client.responses.create(model="tiny:latest", input="turn", metadata={"who": "me"}, temperature=0)
    assert said.output_text == TAUGHT
    assert (said.status, said.object, said.metadata, said.temperature) == ("completed", "response", {"who": "me"}, 0)
    assert said.id.startswith("resp_")
    message, = said.output
    assert (message.type, message.role, message.status) == ("message", "assistant", "completed")
    assert said.usage.total_tokens == said.usage.input_tokens + said.usage.output_tokens
    assert not said.store


def test_the_base_says_what_llama_cpp_says(client, model):
    """With instructions as its system message, and a conversation as items."""
    messages = [{"role": "system", "content": "the light"}, {"role": "user", "content": "on"},
                {"role": "assistant", "content": "off"}, {"role": "user", "content": "turn"}]
    items = [{"role": "user", "content": [{"type": "input_text", "text": "on"}]},
             {"role": "assistant", "type": "message", "content": [{"type": "output_text", "text": "off"}]},
             {"role": "user", "content": "turn"}]
    said = client.responses.create(model="tiny", instructions="the light", input=items, max_output_tokens=16)
    with LlamaModel(model, threads=1) as served:
        assert said.output_text == "".join(served.chat(messages, max_tokens=16))
        tokens = served.tokenizer.encode(served.tokenizer.render(messages, add_generation_prompt=True), bos=True)
    assert said.usage.input_tokens == len(tokens)
    assert (said.status, said.incomplete_details.reason) == ("incomplete", "max_output_tokens")
    assert said.output[0].status == "incomplete"
    again = client.responses.create(model="tiny", instructions="the light", input=items, max_output_tokens=16)
    assert again.usage.input_tokens_details.cached_tokens > 0
    both = client.responses.create(model="tiny", instructions="the", max_output_tokens=1,
                                   input=[{"role": "developer", "content": "light"}, *items])
    chat = client.chat.completions.create(model="tiny", max_tokens=1, messages=[
        {"role": "system", "content": "the\n\nlight"}, *messages[1:]])
    assert both.usage.input_tokens == chat.usage.prompt_tokens


def test_a_stream_is_the_same_in_events(client):
    options = {"model": "tiny", "input": "turn", "max_output_tokens": 60}
    whole = client.responses.create(**options)
    events = list(client.responses.create(**options, stream=True))
    kinds = [event.type for event in events]
    deltas = [event.delta for event in events if event.type == "response.output_text.delta"]
    assert kinds == ["response.created", "response.in_progress", "response.output_item.added",
                     "response.content_part.added", *["response.output_text.delta"] * len(deltas),
                     "response.output_text.done", "response.content_part.done", "response.output_item.done",
                     "response.incomplete" if whole.status == "incomplete" else "response.completed"]
    assert len(deltas) > 2
    assert [event.sequence_number for event in events] == list(range(len(events)))
    assert "".join(deltas) == events[-1].response.output_text == whole.output_text
    assert events[0].response.status == "in_progress"
    assert events[-1].response.id == events[0].response.id
    assert events[-1].response.usage.output_tokens == whole.usage.output_tokens
    with client.responses.stream(model="tiny:latest", input="turn") as stream:  # the client puts the pieces together
        assert stream.get_final_response().output_text == TAUGHT


@pytest.mark.parametrize("stream", [False, True])
def test_tools_are_called_and_their_outputs_are_items(client, stream):
    said = client.responses.create(model="tiny:latest", input="the lamp", tools=[LAMP], stream=stream)
    if stream:
        events = list(said)
        said = events[-1].response
        done = [event for event in events if event.type == "response.function_call_arguments.done"]
        deltas = "".join(event.delta for event in events if event.type == "response.function_call_arguments.delta")
        assert deltas == "".join(event.arguments for event in done) == '{"on": true}' * 2
        items = [event.item for event in events if event.type == "response.output_item.done"]
        assert [item.model_dump() for item in items] == [item.model_dump() for item in said.output]
    text, first, second = said.output
    assert text.content[0].text.strip() == "now"
    assert (first.name, first.arguments, first.status) == ("lamp", '{"on": true}', "completed")
    assert first.call_id != second.call_id
    assert said.tools[0].name == "lamp"
    more = [{"role": "user", "content": "the lamp"}, *(item.model_dump(exclude_none=True) for item in said.output),
            *({"type": "function_call_output", "call_id": call.call_id, "output": "done"} for call in (first, second))]
    after = client.responses.create(model="tiny", input=more, tools=[LAMP], max_output_tokens=1)
    calls = [{"id": call.call_id, "type": "function", "function": {"name": "lamp", "arguments": call.arguments}}
             for call in (first, second)]
    chat = client.chat.completions.create(model="tiny", max_tokens=1, tools=[CHAT_LAMP], messages=[
        {"role": "user", "content": "the lamp"}, {"role": "assistant", "content": text.content[0].text},
        {"role": "assistant", "content": "", "tool_calls": calls},
        *({"role": "tool", "tool_call_id": call["id"], "content": "done"} for call in calls)])
    assert after.usage.input_tokens == chat.usage.prompt_tokens


class Lamp(BaseModel):
    on: bool
    where: Literal["hall", "attic"]


def test_answers_obey_a_schema(client):
    """The model alone never says JSON."""
    said = client.responses.parse(model="tiny", input="turn", text_format=Lamp)
    assert isinstance(said.output_parsed, Lamp)
    assert said.text.format.name == "Lamp"
    with client.responses.stream(model="tiny", input="turn", text_format=Lamp) as stream:
        assert stream.get_final_response().output_parsed == said.output_parsed
    free = client.responses.create(model="tiny", input="turn", text={"format": {"type": "json_object"}},
                                   max_output_tokens=20)
    assert free.output_text.startswith("{")


@pytest.mark.parametrize("choice", ["required", {"type": "function", "name": "lamp"}])
def test_a_call_can_be_required(client, choice):
    call, = client.responses.create(model="tiny", input="turn", tools=[LAMP], tool_choice=choice).output
    assert (call.type, call.name) == ("function_call", "lamp")
    assert type(json.loads(call.arguments)["on"]) is bool


def test_tools_may_be_hidden(client):
    shown, hidden, none = (client.responses.create(model="tiny", input="turn", max_output_tokens=1, **more).usage
                           for more in ({"tools": [LAMP]}, {"tools": [LAMP], "tool_choice": "none"}, {}))
    assert shown.input_tokens > hidden.input_tokens == none.input_tokens


def test_what_is_sampled_comes_again_with_its_seed(client):
    said = [client.responses.create(model="tiny", input="turn", max_output_tokens=12, temperature=1.5, top_p=1.0,
                                    extra_body={"seed": seed, "top_k": 0, "min_p": 0.0}).output_text
            for seed in (1, 1, 1, 2)]
    assert said[1] == said[2] != said[3]  # the first one may find another cache


def test_an_answer_can_be_corrected_by_its_id(client):
    said = client.responses.create(model="tiny", input="the light on please", max_output_tokens=2)
    client.post("/feedback", body={"completion_id": said.id, "correction": "it is on"}, cast_to=object)
    again = client.responses.create(model="tiny:latest", input="the light on please")
    assert again.output_text == "it is on"


@pytest.mark.parametrize(("wrong", "says"), [
    ({"previous_response_id": "resp_1"}, "not stored here; send the earlier turns"),
    ({"conversation": "conv_1"}, "not stored"), ({"background": True}, "background"),
    ({"truncation": "auto"}, "truncation"), ({"parallel_tool_calls": False}, "parallel_tool_calls"),
    ({"include": ["message.output_text.logprobs"]}, "include"), ({"top_logprobs": 2}, "top_logprobs"),
    ({"reasoning": {"effort": "high"}}, "reasoning"), ({"max_output_tokens": 0}, "max_tokens is 0"),
    ({"tools": [{"type": "web_search"}]}, "tools"), ({"input": [{"type": "item_reference", "id": "x"}]}, "reference"),
    ({"input": [{"role": "user", "content": [{"type": "input_image", "image_url": "x"}]}]}, "input_image"),
    ({"input": []}, "input"), ({"input": "the light " * 900}, "context")])
def test_what_cannot_be_done_is_refused(client, wrong, says):
    with pytest.raises(openai.BadRequestError, match=says):
        client.responses.create(**{"model": "tiny", "input": "turn", **wrong})
    with pytest.raises(openai.NotFoundError):
        client.responses.create(model="gpt-5", input="turn")
