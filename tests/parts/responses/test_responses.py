"""/v1/responses by OpenAI's client: items, events and forms, beyond what test_surfaces asks of it."""

from typing import Literal

import httpx
import openai
import pytest
from daemons import CHAT, daemon
from encoder_daemon import labelled, write_adapter, write_tiny_encoder
from pydantic import BaseModel
from thinkers import write_thinker

from edgetune.daemon.api.security import scope_of
from edgetune.daemon.keys import KeyScope
from edgetune.parts.responses import routes
from edgetune.parts.responses.bodies import ResponseRequest
from edgetune.serving.classifier import Classifier

SHAPE = {"n_context": 1024}
ASK = [{"role": "user", "content": "turn the light"}]
LAMP = {"type": "function", "name": "lamp", "parameters": {"type": "object"}}


def test_instructions_and_items_are_the_messages_of_a_chat_and_are_given_back(client):
    said = client.responses.create(model="tiny:latest", input="turn", metadata={"who": "me"}, temperature=0,
                                   max_output_tokens=3)
    assert (said.object, said.metadata, said.temperature, said.store) == ("response", {"who": "me"}, 0, False)
    assert said.id.startswith("resp_")
    message, = said.output
    assert (message.type, message.role, message.status) == ("message", "assistant", "incomplete")
    assert (said.status, said.incomplete_details.reason) == ("incomplete", "max_output_tokens")
    assert said.usage.total_tokens == said.usage.input_tokens + said.usage.output_tokens
    items = [{"role": "user", "content": [{"type": "input_text", "text": "on"}]},
             {"role": "assistant", "type": "message", "content": [{"type": "output_text", "text": "off"}]},
             {"role": "user", "content": "turn"}]
    for given, instructions, system in ((items, "the light", "the light"),
                                        ([{"role": "developer", "content": "light"}, *items], "the", "the\n\nlight")):
        said = client.responses.create(model="tiny", instructions=instructions, input=given, max_output_tokens=9)
        chat = client.chat.completions.create(model="tiny", max_tokens=9, messages=[
            {"role": "system", "content": system}, {"role": "user", "content": "on"},
            {"role": "assistant", "content": "off"}, {"role": "user", "content": "turn"}])
        assert said.output_text == chat.choices[0].message.content
        assert said.usage.input_tokens == chat.usage.prompt_tokens
    again = client.responses.create(model="tiny", instructions="the", input=given, max_output_tokens=1)
    assert again.usage.input_tokens_details.cached_tokens > 0


def kinds_of(events):
    assert [event.sequence_number for event in events] == list(range(len(events)))
    return [event.type.removeprefix("response.") for event in events]


def test_the_events_of_a_text(client):
    events = list(client.responses.create(model="tiny", input="turn", max_output_tokens=60, stream=True))
    deltas = [event.delta for event in events if event.type == "response.output_text.delta"]
    last = events[-1].response
    assert kinds_of(events) == ["created", "in_progress", "output_item.added", "content_part.added",
                                *["output_text.delta"] * len(deltas), "output_text.done", "content_part.done",
                                "output_item.done", last.status]
    assert len(deltas) > 2
    assert "".join(deltas) == last.output_text
    assert (events[0].response.status, events[0].response.id) == ("in_progress", last.id)


def test_the_events_of_calls(client):
    events = list(client.responses.create(model="tiny", input="turn", tools=[LAMP], tool_choice={
        "type": "function", "name": "lamp"}, stream=True))
    last = events[-1].response
    call, = last.output
    deltas = [event.delta for event in events if event.type == "response.function_call_arguments.delta"]
    assert kinds_of(events) == ["created", "in_progress", "output_item.added",
                                *["function_call_arguments.delta"] * len(deltas), "function_call_arguments.done",
                                "output_item.done", "completed"]
    assert "".join(deltas) == call.arguments == "{}"
    assert events[-2].item.model_dump() == call.model_dump()
    assert last.tools[0].name == "lamp"


class Lamp(BaseModel):
    on: bool
    where: Literal["hall", "attic"]


def test_the_client_puts_a_form_together(client):
    said = client.responses.parse(model="tiny", input="turn", text_format=Lamp)
    assert isinstance(said.output_parsed, Lamp)
    assert said.text.format.name == "Lamp"
    with client.responses.stream(model="tiny", input="turn", text_format=Lamp) as stream:
        assert stream.get_final_response().output_parsed == said.output_parsed
    free = client.responses.create(model="tiny", input="turn", text={"format": {"type": "json_object"}},
                                   max_output_tokens=20)
    assert free.output_text.startswith("{")
    shown, hidden = (client.responses.create(model="tiny", input="turn", tools=[LAMP], tool_choice=choice,
                                             max_output_tokens=1).usage.input_tokens for choice in ("auto", "none"))
    assert shown > hidden == free.usage.input_tokens


def test_no_reasoning_may_be_asked_for(client):
    said = client.responses.create(model="tiny", input="turn", reasoning={"effort": "none"}, max_output_tokens=4)
    assert said.reasoning.effort == "none"
    plain = client.responses.create(model="tiny", input="turn", max_output_tokens=4)
    assert (said.output_text, plain.reasoning) == (plain.output_text, None)


@pytest.mark.parametrize(("wrong", "says"), [
    ({"previous_response_id": "resp_1"}, "not stored here; send the earlier turns"),
    ({"conversation": "conv_1"}, "not stored"), ({"reasoning": {"effort": "high"}}, "reasoning"),
    ({"tools": [{"type": "web_search"}]}, "tools"), ({"input": [{"type": "item_reference", "id": "x"}]}, "reference"),
    ({"input": [{"role": "user", "content": [{"type": "input_image", "image_url": "x"}]}]}, "input_image"),
    ({"input": []}, "input")])
def test_what_cannot_be_done_is_refused(client, wrong, says):
    with pytest.raises(openai.BadRequestError, match=says):
        client.responses.create(**{"model": "tiny", "input": "turn", **wrong})


def test_a_response_may_ask_for_no_thoughts(tmp_path):
    model = write_thinker(tmp_path / "Tiny.gguf", opens=True)
    with daemon(model, tmp_path / "state") as running, httpx.Client(base_url=running.url, timeout=60) as http:
        body = {"input": "turn the light", "max_output_tokens": 12, "temperature": 1.0, "seed": 1}
        off = http.post("/v1/responses", json={**body, "reasoning": {"effort": "none"}}).json()
        expected = http.post(CHAT, json={"messages": ASK, "max_tokens": 12, "temperature": 1.0, "seed": 1,
                                         "reasoning_effort": "none"}).json()
        assert off["output"][0]["content"][0]["text"] == expected["choices"][0]["message"]["content"]
        assert off["usage"]["input_tokens"] == expected["usage"]["prompt_tokens"]


@pytest.mark.parametrize("name", ["lamp", "time"])
def test_a_choice_allows_some_of_the_tools(client, name):
    tools = [{**LAMP, "name": each} for each in ("lamp", "time")]
    choice = {"type": "allowed_tools", "mode": "required", "tools": [{"type": "function", "name": name}]}
    response = client.responses.create(model="tiny", input="on", tools=tools, tool_choice=choice)
    assert [item.name for item in response.output] == [name]
    assert response.tool_choice.mode == "required"


@pytest.mark.parametrize("stream", [False, True])
def test_an_input_that_does_not_fit_the_context_has_openais_code(client, running, stream):
    with pytest.raises(openai.BadRequestError, match="do not fit the context") as caught:
        client.responses.create(model="tiny", input="turn " * running.service.served.context, stream=stream)
    assert caught.value.code == "context_length_exceeded"


@pytest.mark.parametrize(("given", "is_kept"), [({}, True), ({"store": True}, True), ({"store": False}, False)])
def test_a_client_may_refuse_that_its_question_is_kept(given, is_kept):
    assert ResponseRequest(input="on", **given).question().may_be_kept == is_kept


def test_the_answer_of_an_encoder_is_its_label(tmp_path):
    model = write_tiny_encoder(tmp_path / "enc.gguf")
    labels = write_adapter(model, tmp_path / "labels", labelled())
    with daemon(model, tmp_path / "state") as running:
        adapters = running.service.adapters
        adapters.promote(adapters.add("ftjob-0", labels, "home", {"passed": True, "reason": "a test"}).id, "test")
        said = httpx.post(running.url + "/v1/responses", json={"input": "turn on the light c d"}, timeout=60).json()
    with Classifier(model, labels, threads=1) as served:
        assert said["output"][0]["content"][0]["text"] == served.classify(["turn on the light c d"])[0].label


def test_a_key_for_answers_may_ask():
    assert {scope_of(route) for route in routes.router.routes} == {KeyScope.ANSWER}
