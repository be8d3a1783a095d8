"""Tools for a model whose chat template has no place for them, through the official client against a real daemon."""

import json

import jsonschema_rs
import openai
import pytest
import templates
from daemons import daemon, openai_client
from tiny import write_tiny

from edgetune.data.dataset import load_rows
from edgetune.formats.bundle import open_bundle
from edgetune.llamacpp.tokenizer import Tokenizer
from edgetune.training import run as train
from edgetune.training.config import TrainConfig

SHAPE = {"n_context": 2048, "metadata": {"tokenizer.chat_template": templates.CHATML}}
DAEMON = {"context": 2048, "threads": 2}
PARAMETERS = {"type": "object", "additionalProperties": False, "required": ["room", "level"],
              "properties": {"room": {"enum": ["hall", "attic"]},
                             "level": {"type": "integer", "minimum": 0, "maximum": 9}}}
TOOLS = [{"type": "function", "function": {"name": "lamp", "description": "Set a lamp", "parameters": PARAMETERS}},
         {"type": "function", "function": {"name": "time", "description": "Tells the time"}}]
ASK = [{"role": "user", "content": "Set the lamp in the attic to 3"}]
NAMED = {"type": "function", "function": {"name": "lamp"}}
ROW = {"tools": TOOLS, "messages": [*ASK, {"role": "assistant", "content": None, "tool_calls": [
    {"type": "function", "function": {"name": "lamp", "arguments": '{"room": "attic", "level": 3}'}}]}]}


@pytest.fixture(scope="module", params=["tiny", pytest.param("smollm2", marks=pytest.mark.slow)])
def model(request, tmp_path_factory):
    if request.param == "smollm2":
        return request.getfixturevalue("smollm2")
    return write_tiny(tmp_path_factory.mktemp("model") / "Tiny.gguf", **SHAPE)


def check(calls):
    for call in calls:
        arguments = json.loads(call.function.arguments)
        schema = PARAMETERS if call.function.name == "lamp" else {"const": {}}
        assert jsonschema_rs.is_valid(schema, arguments), call


@pytest.mark.parametrize("name", ["lamp", "time"])
def test_a_choice_allows_some_of_the_tools(client, name):
    model = client.models.list().data[0].id
    allowed = {"mode": "required", "tools": [{"type": "function", "function": {"name": name}}]}
    said = client.chat.completions.create(model=model, messages=ASK, tools=TOOLS, tool_choice={
        "type": "allowed_tools", "allowed_tools": allowed}).choices[0].message
    assert [call.function.name for call in said.tool_calls] == [name]
    check(said.tool_calls)


def test_tools_that_a_choice_does_not_allow_are_not_shown(client):
    model = client.models.list().data[0].id
    auto = {"type": "allowed_tools", "allowed_tools": {"mode": "auto", "tools": [NAMED]}}
    shown = [client.chat.completions.create(model=model, messages=ASK, max_tokens=1, tools=tools, tool_choice=choice)
             .usage.prompt_tokens for tools, choice in ((TOOLS, auto), (TOOLS[:1], "auto"), (TOOLS, "auto"))]
    assert shown[0] == shown[1] < shown[2]
    auto["allowed_tools"]["tools"] = [{"type": "function", "function": {"name": "radio"}}]
    with pytest.raises(openai.BadRequestError, match="allows the function 'radio', which tools has not"):
        client.chat.completions.create(model=model, messages=ASK, tools=TOOLS, tool_choice=auto)


def test_calls_that_must_be_are_calls_by_their_schema(client):
    name = client.models.list().data[0].id
    for choice in ("required", NAMED):
        said = client.chat.completions.create(model=name, messages=ASK, tools=TOOLS, tool_choice=choice).choices[0]
        assert said.finish_reason == "tool_calls"
        assert said.message.content is None
        check(said.message.tool_calls)
    assert said.message.tool_calls[0].function.name == "lamp"
    told = [*ASK, said.message.model_dump(exclude_none=True),
            {"role": "tool", "tool_call_id": said.message.tool_calls[0].id, "content": "done"}]
    options = {"model": name, "messages": told, "max_tokens": 4}
    assert client.chat.completions.create(**options, tools=TOOLS).usage.completion_tokens > 0
    assert client.chat.completions.create(**options).usage.completion_tokens > 0
    options = {"model": client.models.list().data[0].id, "messages": ASK, "max_tokens": 4}
    plain = client.chat.completions.create(**options)
    assert client.chat.completions.create(**options, tools=TOOLS, tool_choice="none").usage.prompt_tokens == (
        plain.usage.prompt_tokens)
    free = client.chat.completions.create(**options, tools=TOOLS, tool_choice="auto")
    assert free.usage.prompt_tokens > plain.usage.prompt_tokens + 50
    check(free.choices[0].message.tool_calls or [])


@pytest.mark.slow
def test_a_call_that_rows_taught_comes_by_itself(tmp_path):
    model = write_tiny(tmp_path / "Tiny.gguf", **SHAPE)
    data = load_rows([ROW] * 8, Tokenizer(model), max_length=2048)
    options = TrainConfig(steps=24, batch_size=2, lr=2e-2, max_length=2048, threads=2)
    train.run(open_bundle(model), data, tmp_path / "a", options)
    with daemon(model, tmp_path / "state", context=2048) as running, openai_client(running.url) as client:
        adapter = running.service.adapters.add("job-1", tmp_path / "a", "s", {"passed": True, "reason": "a test"}).id
        said = client.chat.completions.create(model=adapter, messages=ASK, tools=TOOLS).choices[0]
    call, = said.message.tool_calls
    assert (call.function.name, json.loads(call.function.arguments)) == ("lamp", {"room": "attic", "level": 3})
    assert said.finish_reason == "tool_calls"
