"""Answers by construction, and all options of sampling, through the official client against a real daemon."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Literal

import pytest

pytest.importorskip("fastapi")
pytest.importorskip("openai")
pytest.importorskip("jsonschema_rs")

import jsonschema_rs
import numpy as np
import openai
from daemons import Daemon, daemon, openai_client
from pydantic import BaseModel, Field
from tiny import write_tiny

from edgetune.cli.info import describe
from edgetune.data.dataset import load_rows
from edgetune.evaluation.served import grade
from edgetune.formats.bundle import open_bundle
from edgetune.llamacpp.tokenizer import Tokenizer
from edgetune.serving.llama import LlamaModel
from edgetune.training import run as train
from edgetune.training.config import TrainConfig

ASK = [{"role": "user", "content": "turn"}]


class Lamp(BaseModel):
    room: Literal["hall", "attic"]
    level: int = Field(ge=0, le=9)
    names: list[Literal["a", "b"]] = Field(max_length=2)


class Door(BaseModel):
    open: bool | None


TOOLS = [openai.pydantic_function_tool(Lamp), openai.pydantic_function_tool(Door)]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Of floats, whose sums hardly depend on what is computed beside them."""
    return write_tiny(tmp_path_factory.mktemp("model") / "Tiny.gguf", n_context=2048)


@pytest.fixture(scope="module")
def running(model: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Daemon]:
    with daemon(model, tmp_path_factory.mktemp("daemon") / "state", context=2048) as made:
        yield made


@pytest.fixture(scope="module")
def client(running: Daemon) -> Iterator[openai.OpenAI]:
    with openai_client(running.url) as made:
        yield made


# ---- form -----------------------------------------------------------------------------------------------------------


def test_parse_gives_what_was_asked_for(client):
    for seed in range(3):
        said = client.chat.completions.parse(model="tiny", messages=ASK, response_format=Lamp, temperature=1.5,
                                             seed=seed)
        assert isinstance(said.choices[0].message.parsed, Lamp)
        assert said.choices[0].finish_reason == "stop"


def test_json_mode_and_a_grammar_hold(client):
    options = {"model": "tiny", "messages": ASK, "max_tokens": 200}
    said = client.chat.completions.create(**options, response_format={"type": "json_object"}).choices[0]
    assert isinstance(json.loads(said.message.content), dict)
    said = client.chat.completions.create(**options, extra_body={"grammar": "root ::= [x-z]{5}"}).choices[0]
    assert (len(said.message.content), set(said.message.content) <= set("xyz"), said.finish_reason) == (5, True, "stop")
    text = client.completions.create(model="tiny", prompt="a", extra_body={"json_schema": {"const": [1]}})
    assert text.choices[0].text == "[1]"


def test_max_tokens_shortens_an_answer_and_keeps_its_form(client):
    schema = {"type": "object", "properties": {"a": {"type": "string"}, "b": {"type": "array"}}, "required": ["a", "b"]}
    forms = [{"type": "json_object"}, {"type": "json_schema", "json_schema": {"name": "form", "schema": schema}}]
    finished = set()
    for form in forms:
        for max_tokens in range(15, 25):  # bytes of {"a":"","b":[]} and more
            said = client.chat.completions.create(model="tiny", messages=ASK, max_tokens=max_tokens, temperature=2.0,
                                                  top_p=1.0, seed=max_tokens, response_format=form).choices[0]
            jsonschema_rs.validator_for(schema if form != forms[0] else {"type": "object"}).validate(
                json.loads(said.message.content))
            finished.add(said.finish_reason)
    assert "length" in finished
    tool = {"type": "function", "function": {"name": "say", "parameters": schema}}
    said = client.chat.completions.create(model="tiny", messages=ASK, tools=[tool], tool_choice="required", seed=1,
                                          max_tokens=90, temperature=2.0, top_p=1.0).choices[0]
    assert set(json.loads(said.message.tool_calls[0].function.arguments)) == {"a", "b"}


def test_a_call_that_is_required_comes_as_a_call(client):
    said = client.chat.completions.parse(model="tiny", messages=ASK, tools=TOOLS, tool_choice="required").choices[0]
    assert said.finish_reason == "tool_calls"
    call, = said.message.tool_calls
    assert isinstance(call.function.parsed_arguments, Lamp | Door)
    assert said.message.content is None
    named = {"type": "function", "function": {"name": "Door"}}
    whole = client.chat.completions.create(model="tiny", messages=ASK, tools=TOOLS, tool_choice=named, n=2)
    assert {choice.message.tool_calls[0].function.name for choice in whole.choices} == {"Door"}
    arguments = whole.choices[0].message.tool_calls[0].function.arguments
    with client.chat.completions.stream(model="tiny", messages=ASK, tools=TOOLS, tool_choice=named) as stream:
        pieces = [event for event in stream if event.type == "tool_calls.function.arguments.delta"]
        final = stream.get_final_completion().choices[0]
    assert len(pieces) > 3
    assert final.finish_reason == "tool_calls"
    assert final.message.tool_calls[0].function.arguments == arguments
    result = [*ASK, whole.choices[0].message.model_dump(exclude_none=True),
              {"role": "tool", "tool_call_id": call.id, "content": "done"}]
    assert client.chat.completions.create(model="tiny", messages=result, tools=TOOLS, max_tokens=2).usage
    free = client.chat.completions.create(model="tiny", messages=ASK, tools=TOOLS, tool_choice="none", max_tokens=3)
    assert free.choices[0].message.tool_calls is None


@pytest.mark.parametrize("none", [{"type": "object", "properties": {}}, {"type": "object", "required": []}, {}])
def test_a_function_whose_parameters_name_no_argument_gets_none(client, none):
    """By JSON Schema such an object may have all keys; LangChain sends one for a function without arguments."""
    tool = {"type": "function", "function": {"name": "stop", "parameters": none}}
    said = client.chat.completions.create(model="tiny", messages=ASK, tools=[tool], tool_choice="required")
    assert json.loads(said.choices[0].message.tool_calls[0].function.arguments) == {}
    tool["function"]["parameters"] = {"type": "object", "additionalProperties": {"const": 1}, "required": ["a"]}
    said = client.chat.completions.create(model="tiny", messages=ASK, tools=[tool], tool_choice="required")
    assert json.loads(said.choices[0].message.tool_calls[0].function.arguments) == {"a": 1}


def test_a_schema_beside_tools_leaves_the_choice(client):
    for seed in range(4):
        said = client.chat.completions.parse(model="tiny", messages=ASK, tools=TOOLS, response_format=Door, seed=seed,
                                             temperature=2.0, top_p=1.0).choices[0]
        assert said.message.tool_calls or isinstance(said.message.parsed, Door)


@pytest.mark.parametrize(("wrong", "says"), [
    ({"extra_body": {"grammar": "root ::= x"}}, "no rule 'x'"),
    ({"extra_body": {"grammar": "root ::= " + "(" * 9999}}, "parentheses"),
    ({"response_format": {"type": "json_schema", "json_schema": {"name": "a", "schema": {"not": {}}}}}, "has not"),
    ({"response_format": {"type": "json_schema"}}, "json_schema.schema is missing"),
    ({"response_format": {"type": "json_object"}, "extra_body": {"grammar": "root ::= [a]"}}, "leave one of them out"),
    ({"tool_choice": "required"}, "tools has none"), ({"logit_bias": {"9999": 1}}, "token 9999"),
    ({"logit_bias": {"a": 1}}, "'a'"), ({"presence_penalty": 2.5}, "presence_penalty"), ({"n": 0}, "n is 0"),
    ({"n": 128}, "128 answers"), ({"top_logprobs": 3}, "top_logprobs"),
    ({"reasoning_effort": "high"}, "reasoning_effort"),
    ({"extra_body": {"functions": []}}, "functions"), ({"extra_body": {"modalities": ["audio"]}}, "modalities"),
    ({"tools": [{"type": "function", "function": {"name": "f", "parameters": {"type": "array"}}}],
      "tool_choice": "required"}, "no object")])
def test_what_cannot_be_is_refused_in_a_sentence(client, wrong, says):
    with pytest.raises(openai.BadRequestError, match=says):
        client.chat.completions.create(model="tiny", messages=ASK, **wrong)


# ---- how many, how likely -------------------------------------------------------------------------------------------


def test_n_answers_and_lists_of_prompts(client):
    options = {"model": "tiny", "max_tokens": 6, "temperature": 1.5, "seed": 7}
    three = client.chat.completions.create(messages=ASK, n=3, **options)
    texts = [choice.message.content for choice in three.choices]
    assert [choice.index for choice in three.choices] == [0, 1, 2]
    assert len(set(texts)) == 3
    assert texts[0] == client.chat.completions.create(messages=ASK, **options).choices[0].message.content
    assert three.usage.prompt_tokens == client.chat.completions.create(messages=ASK, **options).usage.prompt_tokens
    streamed = ["", "", ""]
    for chunk in client.chat.completions.create(messages=ASK, n=3, stream=True, **options):
        streamed[chunk.choices[0].index] += chunk.choices[0].delta.content or ""
    assert streamed == texts
    alone = [client.completions.create(prompt=prompt, **options).choices[0].text for prompt in ("the", "light")]
    together = client.completions.create(prompt=["the", "light"], n=2, **options)
    assert [together.choices[i].text for i in (0, 2)] == alone
    assert [choice.index for choice in together.choices] == [0, 1, 2, 3]
    tokens = client.completions.create(prompt=[[5, 6], [7]], model="tiny", max_tokens=1)
    assert (len(tokens.choices), tokens.usage.prompt_tokens) == (2, 3)


def test_logprobs_are_those_of_the_model(client, model):
    prompt = [5, 6, 7]
    said = client.completions.create(model="tiny", prompt=prompt, max_tokens=5, logprobs=3, logit_bias={"9": 100})
    found = said.choices[0].logprobs
    assert said.usage.completion_tokens == 5
    with LlamaModel(model, threads=1) as served:
        logits = served.logits([*prompt, 9, 9, 9, 9])[2:].astype(np.float64)
        piece = served.tokenizer.decode([9])
        tops = [{served.tokenizer.decode([i]) for i in np.argsort(-row)[:3]} for row in logits]
    expected = logits - np.log(np.exp(logits).sum(-1, keepdims=True))
    assert found.tokens == [piece] * 5  # biased: the log-probability is not
    np.testing.assert_allclose(found.token_logprobs, expected[:, 9], atol=0.02)
    assert [set(top) for top in found.top_logprobs] == tops
    assert found.text_offset == [i * len(piece) for i in range(5)]
    options = {"model": "tiny", "messages": ASK, "max_tokens": 4, "logprobs": True, "top_logprobs": 2}
    chat = client.chat.completions.create(**options).choices[0].logprobs.content
    assert [len(token.top_logprobs) for token in chat] == [2] * 4
    assert all(token.logprob == token.top_logprobs[0].logprob for token in chat)  # the likeliest was taken
    chunks = [chunk.choices[0] for chunk in client.chat.completions.create(**options, stream=True)]
    streamed = [token for choice in chunks if choice.logprobs for token in choice.logprobs.content]
    assert [token.bytes for token in streamed] == [token.bytes for token in chat]


def test_penalties_and_biases_change_the_answer(client):
    def text(**options: object) -> str:
        return client.completions.create(model="tiny", prompt=[5, 6], max_tokens=12, **options).choices[0].text

    assert text(logit_bias={"400": 100}) != text()
    same = text(logit_bias={"300": 8})
    assert text(logit_bias={"300": 8}, presence_penalty=2.0, frequency_penalty=2.0) != same
    assert text(logit_bias={"300": 8}, extra_body={"repeat_penalty": 5.0, "repeat_last_n": 4}) != same


def test_null_is_absent_and_what_has_no_effect_is_named_once(client, caplog):
    absent = dict.fromkeys(("n", "logprobs", "top_logprobs", "tools", "tool_choice", "response_format", "stop", "seed",
                            "logit_bias", "stream", "stream_options", "presence_penalty", "metadata", "temperature"))
    idle = {"user": "me", "metadata": {"a": "b"}, "service_tier": "auto", "parallel_tool_calls": False}
    with caplog.at_level(logging.INFO, "edgetune.daemon"):
        for _ in range(2):
            said = client.chat.completions.create(messages=ASK, max_tokens=2, model=None, extra_body=absent | idle)
            assert said.usage.completion_tokens == 2
    for name in idle:
        assert caplog.text.count(f"the option {name}, which has no effect") == 1


# ---- by adapter -----------------------------------------------------------------------------------------------------


def test_an_adapter_answers_in_the_form_of_its_rows(client, model, running, tmp_path):
    rows = [{"prompt": f"turn {i}", "completion": json.dumps({"room": ["hall", "attic"][i % 2], "level": i})}
            for i in range(12)]
    data = load_rows(rows, Tokenizer(model), max_length=64)
    train.run(open_bundle(model), data, tmp_path / "a", TrainConfig(steps=1, batch_size=4, max_length=64, threads=1))
    schema = json.loads((tmp_path / "a" / "schema.json").read_text())
    assert schema["properties"]["room"]["enum"] == ["attic", "hall"]
    assert describe(tmp_path / "a")["schema"] == schema
    adapter = running.service.adapters.add("job-1", tmp_path / "a", "s", {"passed": True, "reason": "a test"}).id
    options = {"model": adapter, "messages": ASK, "temperature": 2.0, "max_tokens": 100}
    for seed in range(5):
        said = json.loads(client.chat.completions.create(seed=seed, **options).choices[0].message.content)
        assert jsonschema_rs.is_valid(schema, said)
    free = client.chat.completions.create(**options, seed=0, response_format={"type": "text"}).choices[0].message
    assert not free.content.startswith("{")
    other = client.chat.completions.parse(**options, seed=0, response_format=Door).choices[0].message
    assert isinstance(other.parsed, Door)
    base = client.chat.completions.create(**(options | {"model": "tiny"}), seed=0).choices[0].message
    assert not base.content.startswith("{")
    with LlamaModel(model, threads=1) as served:
        served.load_adapter(tmp_path / "a", "a")
        served.use("a")
        graded = grade(served, data).scores
        assert (graded.structured_parsed, graded.parsed) == (1.0, 0.0)
        assert grade(served, data, structured=False).scores.structured is None
