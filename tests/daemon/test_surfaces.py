"""Features that the APIs for answers share, by their official clients: each is asked the same, whole and streamed."""

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import ollama
import openai
import pytest
from daemons import PATIENCE

from edgetune.serving.llama import LlamaModel

SHAPE = {"formats": "F32", "n_context": 1024}  # sums of floats hardly depend on what is computed at the same time
DAEMON = {"context": 1024}
ASK = [{"role": "user", "content": "turn"}]
CALLING = [{"role": "user", "content": "the lamp"}]
TAUGHT = "the light off"
CALL = '<tool_call>{"name": "lamp", "arguments": {"on": true}}</tool_call>'
SCHEMA = {"type": "object", "properties": {"on": {"type": "boolean"}, "where": {"enum": ["hall", "attic"]}},
          "required": ["on", "where"], "additionalProperties": False}
LAMP = {"name": "lamp", "description": "a lamp", "parameters": {
    "type": "object", "properties": {"on": {"type": "boolean"}}, "required": ["on"]}}
TOOL = {"type": "function", "function": LAMP}
Messages = Sequence[dict[str, Any]]


@dataclass(frozen=True)
class Said:
    """An answer. prompt, tokens: of the question and of the answer. calls: (name, arguments)."""

    text: str
    finish: str
    prompt: int
    tokens: int
    calls: list[tuple[str, dict[str, Any]]] = field(default_factory=list)
    id: str = ""


@dataclass(frozen=True)
class Clients:
    openai: openai.OpenAI
    ollama: ollama.Client
    render: Callable[[Messages], str]


def chat(clients, messages, stream, model, *, tools=(), required=False,
         schema=None, **options):
    asked = {"model": model, "messages": messages, **options}
    if tools:
        asked |= {"tools": tools, "tool_choice": "required" if required else "auto"}
    if schema:
        asked["response_format"] = {"type": "json_schema", "json_schema": {"name": "form", "schema": schema}}
    made = clients.openai.chat.completions
    if stream:
        with made.stream(**asked, stream_options={"include_usage": True}) as events:
            whole = events.until_done().current_completion_snapshot  # where the length ended it, too
    else:
        whole = made.create(**asked)
    choice, = whole.choices
    calls = [(call.function.name, json.loads(call.function.arguments)) for call in choice.message.tool_calls or ()]
    return Said(choice.message.content or "", choice.finish_reason, whole.usage.prompt_tokens,
                whole.usage.completion_tokens, calls, whole.id)


def completions(clients, messages, stream, model, *, schema=None, **options):
    more = {"stream": True, "stream_options": {"include_usage": True}} if stream else {}
    made = clients.openai.completions.create(model=model, prompt=clients.render(messages), **options, **more,
                                             extra_body={"json_schema": schema})
    parts = list(made) if stream else [made]
    choices = [part.choices[0] for part in parts if part.choices]
    return Said("".join(choice.text for choice in choices), choices[-1].finish_reason, parts[-1].usage.prompt_tokens,
                parts[-1].usage.completion_tokens, id=parts[0].id)


def items(messages):
    """Messages as items of a response."""
    for message in messages:
        if message["role"] == "tool":
            yield {"type": "function_call_output", "call_id": message["tool_call_id"], "output": message["content"]}
        elif calls := message.get("tool_calls"):
            yield from ({"type": "function_call", "call_id": call["id"], **call["function"]} for call in calls)
        else:
            yield dict(message)


def responses(clients, messages, stream, model, *, max_tokens=None,
              tools=(), required=False, schema=None, seed=None,
              **options):
    asked = {"model": model, "input": list(items(messages)), "max_output_tokens": max_tokens,
             "extra_body": {"seed": seed}, **options}
    if tools:
        asked |= {"tools": [{"type": "function", **tool["function"]} for tool in tools],
                  "tool_choice": "required" if required else "auto"}
    if schema:
        asked["text"] = {"format": {"type": "json_schema", "name": "form", "schema": schema}}
    made = clients.openai.responses.create(**asked, stream=stream)
    whole = list(made)[-1].response if stream else made
    calls = [(item.name, json.loads(item.arguments)) for item in whole.output if item.type == "function_call"]
    finish = "length" if whole.status == "incomplete" else "stop"
    return Said(whole.output_text, finish, whole.usage.input_tokens, whole.usage.output_tokens, calls, whole.id)


def ollama_chat(clients, messages, stream, model, *, tools=(), schema=None,
                **options):
    told = [replaced(message) for message in messages]
    made = clients.ollama.chat(tag(model), told, tools=tools, format=schema, stream=stream, options=named(options))
    parts = list(made) if stream else [made]
    calls = [(call.function.name, dict(call.function.arguments)) for part in parts
             for call in part.message.tool_calls or ()]
    return Said("".join(part.message.content or "" for part in parts), *end(parts), calls)


def replaced(message):
    """With arguments as an object, and the name of a tool, as Ollama has them."""
    calls = [{"function": {**call["function"], "arguments": json.loads(call["function"]["arguments"])}}
             for call in message.get("tool_calls", ())]
    return {**message, **({"tool_calls": calls} if calls else {}),
            **({"tool_name": message["name"]} if "name" in message else {})}


def ollama_generate(clients, messages, stream, model, *, schema=None, **options):
    made = clients.ollama.generate(tag(model), messages[-1]["content"], format=schema, stream=stream,
                                   options=named(options))
    parts = list(made) if stream else [made]
    return Said("".join(part.response for part in parts), *end(parts))


def tag(model):
    return f"{model}:base" if model == "tiny" else model


def named(options):
    return {"num_predict" if name == "max_tokens" else name: value for name, value in options.items()}


def end(parts):
    assert [part.done for part in parts] == [False] * (len(parts) - 1) + [True]
    return parts[-1].done_reason, parts[-1].prompt_eval_count, parts[-1].eval_count


CALLED = (chat, responses, ollama_chat)
SURFACES = (*CALLED, completions, ollama_generate)
each = pytest.mark.parametrize("surface", SURFACES)
streamed_or_not = pytest.mark.parametrize("stream", [False, True])


@pytest.fixture(scope="module")
def clients(running, client):
    """Corrections answer one question by text, and one, where the lamp is shown, by text and two calls."""
    service = running.service
    service.feedback.add(messages=ASK, answer="", correction=TAUGHT, model="tiny")
    service.feedback.add(messages=CALLING, tools=[TOOL], answer="", correction=f"now {CALL}\n{CALL}", model="tiny")
    with ollama.Client(host=running.url, timeout=PATIENCE) as made:
        yield Clients(client, made, lambda messages: service.served.tokenizer.render(
            messages, add_generation_prompt=True))


@pytest.fixture(scope="module")
def served(model):
    """Without a daemon."""
    with LlamaModel(model, threads=1) as served:
        yield served


@each
def test_the_base_says_what_llama_cpp_says(clients, served, surface):
    found = surface(clients, ASK, False, "tiny", max_tokens=8)
    tokens = served.tokenizer.encode(served.tokenizer.render(ASK, add_generation_prompt=True), bos=True)
    assert (found.text, found.finish) == ("".join(served.chat(ASK, max_tokens=8)), "length")
    assert (found.prompt, found.tokens) == (len(tokens), 8)
    again = surface(clients, ASK, True, "tiny", max_tokens=8)
    assert replace(again, id="") == replace(found, id="")


@each
def test_sampling_repeats_with_its_seed(clients, surface):
    said = [surface(clients, ASK, False, "tiny", max_tokens=12, temperature=1.5, top_p=1.0, seed=seed).text
            for seed in (1, 1, 2)]
    assert said[0] == said[1] != said[2]


@pytest.mark.parametrize("surface", [surface for surface in SURFACES if surface is not responses])  # it has no stop
def test_an_answer_ends_before_a_stop(clients, surface):
    whole = surface(clients, ASK, False, "tiny", max_tokens=60).text
    stop = whole.strip("\ufffd")[-2:]
    cut = surface(clients, ASK, True, "tiny", max_tokens=60, stop=[stop])
    assert (cut.text, cut.finish) == (whole.partition(stop)[0], "stop")


@each
@streamed_or_not
def test_answers_obey_a_schema(clients, surface, stream):
    """The base alone never says JSON."""
    found = json.loads(surface(clients, ASK, stream, "tiny", schema=SCHEMA).text)
    assert found.keys() == {"on", "where"}
    assert type(found["on"]) is bool
    assert found["where"] in ("hall", "attic")


@pytest.mark.parametrize("surface", CALLED)
@streamed_or_not
def test_tools_are_shown_called_and_their_results_go_back(clients, surface, stream):
    said = surface(clients, CALLING, stream, "tiny:latest", tools=[TOOL])
    assert said.text.strip() == "now"
    assert said.calls == [("lamp", {"on": True})] * 2
    calls = [{"id": f"call_{i}", "type": "function", "function": {"name": "lamp", "arguments": '{"on": true}'}}
             for i in range(2)]
    more = [*CALLING, {"role": "assistant", "content": "", "tool_calls": calls},
            *({"role": "tool", "tool_call_id": call["id"], "name": "lamp", "content": "done"} for call in calls)]
    first, after, hidden = (surface(clients, messages, False, "tiny", tools=tools, max_tokens=1).prompt
                            for messages, tools in ((CALLING, [TOOL]), (more, [TOOL]), (CALLING, [])))
    assert after > first == said.prompt > hidden
    if surface is responses:
        assert after == chat(clients, more, False, "tiny", tools=[TOOL], max_tokens=1).prompt


@pytest.mark.parametrize("surface", [chat, responses])
@streamed_or_not
def test_a_call_can_be_required(clients, surface, stream):
    said = surface(clients, ASK, stream, "tiny", tools=[TOOL], required=True)
    (name, arguments), = said.calls
    assert (name, type(arguments["on"]), said.text) == ("lamp", bool, "")


@pytest.mark.parametrize("surface", [chat, responses, completions])
@streamed_or_not
def test_an_answer_is_corrected_by_its_id(clients, running, surface, stream):
    question = [{"role": "user", "content": f"{surface.__name__} {stream}"}]
    said = surface(clients, question, stream, "tiny", max_tokens=2)
    note = clients.openai.post("/feedback", body={"completion_id": said.id, "correction": TAUGHT}, cast_to=object)
    row = running.service.feedback.get(note["id"]).row
    expected = {"prompt": clients.render(question), "completion": TAUGHT} if surface is completions else {
        "messages": [*question, {"role": "assistant", "content": TAUGHT}]}
    assert row == expected
    again = surface(clients, question, stream, "tiny:latest")
    assert (again.text, again.finish) == (TAUGHT, "stop")
    rated = {"completion_id": again.id, "rating": "up"}
    assert clients.openai.post("/feedback", body=rated, cast_to=object)["answer"] == TAUGHT


@each
@pytest.mark.parametrize(("messages", "options", "status", "says"), [
    (ASK, {"model": "gpt-5"}, 404, "gpt-5"), (ASK, {"temperature": -1.0}, 400, "temperature is -1"),
    (ASK, {"max_tokens": 0}, 400, "max_tokens is 0"),
    ([{"role": "user", "content": "on " * 2000}], {}, 400, "context")])
def test_what_cannot_be_is_refused_in_a_sentence(clients, surface, messages, options, status, says):
    with pytest.raises((openai.APIStatusError, ollama.ResponseError), match=says) as caught:
        surface(clients, messages, False, **{"model": "tiny", **options})
    assert caught.value.status_code == status
