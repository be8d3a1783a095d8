"""Answers by construction, and all options of sampling, by the official client."""

import json
import logging
from concurrent.futures import ThreadPoolExecutor
from typing import Literal

import httpx
import jsonschema_rs
import numpy as np
import openai
import pytest
from pydantic import BaseModel, Field
from thread_workers import ThreadWorker

from edgetune.cli.info import describe
from edgetune.data.dataset import load_rows
from edgetune.evaluation.served import grade
from edgetune.formats.bundle import open_bundle
from edgetune.llamacpp.tokenizer import Tokenizer
from edgetune.serving.llama import LlamaModel
from edgetune.training import run as train
from edgetune.training.config import TrainConfig

SHAPE = {"formats": "F32", "n_context": 2048}  # sums of floats hardly depend on what is computed at the same time
DAEMON = {"context": 2048, "start_process": ThreadWorker}
ASK = [{"role": "user", "content": "turn"}]


class Lamp(BaseModel):
    room: Literal["hall", "attic"]
    level: int = Field(ge=0, le=9)
    names: list[Literal["a", "b"]] = Field(max_length=2)


class Door(BaseModel):
    open: bool | None


TOOLS = [openai.pydantic_function_tool(Lamp), openai.pydantic_function_tool(Door)]


@pytest.fixture(scope="module")
def chat(client):
    """Asks, and returns the first choice."""
    return lambda **options: client.chat.completions.create(**{"model": "tiny", "messages": ASK, **options}).choices[0]


@pytest.fixture(scope="module")
def parse(client):
    return lambda **options: client.chat.completions.parse(**{"model": "tiny", "messages": ASK, **options}).choices[0]


@pytest.mark.dev
def test_schemas_json_mode_and_grammars_hold(client, chat, parse):
    for seed in range(3):
        said = parse(response_format=Lamp, temperature=1.5, seed=seed)
        assert isinstance(said.message.parsed, Lamp)
        assert said.finish_reason == "stop"
    said = chat(max_tokens=200, response_format={"type": "json_object"})
    assert isinstance(json.loads(said.message.content), dict)
    said = chat(max_tokens=200, extra_body={"grammar": "root ::= [x-z]{5}"})
    assert (len(said.message.content), set(said.message.content) <= set("xyz"), said.finish_reason) == (5, True, "stop")
    text = client.completions.create(model="tiny", prompt="a", extra_body={"json_schema": {"const": [1]}})
    assert text.choices[0].text == "[1]"


def random_schema(dice, depth=0):
    kind = dice.integers(4 if depth == 3 else 6)
    if kind == 0:
        return {"type": "integer", "minimum": int(dice.integers(-50, 0)), "maximum": int(dice.integers(0, 50))}
    if kind == 1:
        return {"enum": ["on", "off", None, 3, 2.5, True][: dice.integers(1, 7)]}
    if kind == 2:
        return {"type": ["boolean", "null"]}
    if kind == 3:
        return {"type": "string", "minLength": int(dice.integers(3)), "maxLength": int(dice.integers(3, 9))}
    if kind == 4:
        return {"type": "array", "items": random_schema(dice, depth + 1), "maxItems": int(dice.integers(1, 4))}
    names = [f"a{i}" for i in range(dice.integers(1, 4))]
    return {"type": "object", "properties": {name: random_schema(dice, depth + 1) for name in names},
            "required": names[: dice.integers(4)], "additionalProperties": False}


@pytest.mark.slow
def test_random_schemas_hold(chat):
    schemas = [random_schema(np.random.default_rng(seed)) for seed in range(200)]

    def answer(seed):
        form = {"type": "json_schema", "json_schema": {"name": "form", "schema": schemas[seed]}}
        return chat(response_format=form, temperature=1.5, seed=seed, max_tokens=300)

    with ThreadPoolExecutor(4) as pool:
        for schema, said in zip(schemas, pool.map(answer, range(200)), strict=True):
            assert said.finish_reason == "stop", schema
            assert jsonschema_rs.is_valid(schema, json.loads(said.message.content)), (schema, said.message.content)


@pytest.mark.dev
def test_max_tokens_shortens_an_answer_and_keeps_its_form(chat):
    schema = {"type": "object", "properties": {"a": {"type": "string"}, "b": {"type": "array"}}, "required": ["a", "b"]}
    forms = [{"type": "json_object"}, {"type": "json_schema", "json_schema": {"name": "form", "schema": schema}}]
    finished = set()
    for form in forms:
        for max_tokens in range(15, 25):  # bytes of {"a":"","b":[]} and more
            said = chat(max_tokens=max_tokens, temperature=2.0, top_p=1.0, seed=max_tokens, response_format=form)
            jsonschema_rs.validator_for(schema if form != forms[0] else {"type": "object"}).validate(
                json.loads(said.message.content))
            finished.add(said.finish_reason)
    assert finished == {"stop"}  # with length OpenAI's client refuses to parse it
    tool = {"type": "function", "function": {"name": "say", "parameters": schema}}
    said = chat(tools=[tool], tool_choice="required", seed=1, max_tokens=90, temperature=2.0, top_p=1.0)
    assert set(json.loads(said.message.tool_calls[0].function.arguments)) == {"a", "b"}


@pytest.mark.dev
def test_a_call_that_is_required_comes_as_a_call(client, chat, parse):
    said = parse(tools=TOOLS, tool_choice="required")
    assert said.finish_reason == "tool_calls"
    call, = said.message.tool_calls
    assert isinstance(call.function.parsed_arguments, Lamp | Door)
    assert said.message.content is None
    named = {"type": "function", "function": {"name": "Door"}}
    whole = client.chat.completions.create(model="tiny", messages=ASK, tools=TOOLS, tool_choice=named, n=2)
    assert {choice.message.tool_calls[0].function.name for choice in whole.choices} == {"Door"}
    assert chat(tools=TOOLS, tool_choice="none", max_tokens=3).message.tool_calls is None
    for seed in range(4):
        said = parse(tools=TOOLS, response_format=Door, seed=seed, temperature=2.0, top_p=1.0)
        assert said.message.tool_calls or isinstance(said.message.parsed, Door)


def test_a_function_whose_parameters_name_no_argument_gets_none(chat):
    """By JSON Schema such an object may have all keys; LangChain sends one for a function without arguments."""
    more = {"type": "object", "additionalProperties": {"const": 1}, "required": ["a"]}
    for parameters, expected in (({"type": "object", "properties": {}}, {}), ({"type": "object", "required": []}, {}),
                                 ({}, {}), (more, {"a": 1})):
        tool = {"type": "function", "function": {"name": "stop", "parameters": parameters}}
        call, = chat(tools=[tool], tool_choice="required").message.tool_calls
        assert json.loads(call.function.arguments) == expected


@pytest.mark.parametrize(("wrong", "says"), [
    ({"extra_body": {"grammar": "root ::= x"}}, "no rule 'x'"),
    ({"extra_body": {"grammar": "root ::= " + "(" * 9999}}, "parentheses"),
    ({"response_format": {"type": "json_schema", "json_schema": {"name": "a", "schema": {"not": {}}}}}, "has not"),
    ({"response_format": {"type": "json_schema"}}, "json_schema.schema is missing"),
    ({"response_format": {"type": "json_object"}, "extra_body": {"grammar": "root ::= [a]"}}, "leave one of them out"),
    ({"tool_choice": "required"}, "tools has none"), ({"logit_bias": {"9999": 1}}, "token 9999"),
    ({"logit_bias": {"a": 1}}, "'a'"), ({"presence_penalty": 2.5}, "presence_penalty"),
    ({"n": 128}, "128 answers"), ({"top_logprobs": 3}, "top_logprobs"),
    ({"tools": [{"type": "function", "function": {"name": "f", "parameters": {"type": "array"}}}],
      "tool_choice": "required"}, "no object")])
def test_what_cannot_be_is_refused_in_a_sentence(chat, wrong, says):
    with pytest.raises(openai.BadRequestError, match=says):
        chat(**wrong)


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
    whole = client.chat.completions.create(**options).choices[0].logprobs.content
    assert [len(token.top_logprobs) for token in whole] == [2] * 4
    assert all(token.logprob == token.top_logprobs[0].logprob for token in whole)  # the likeliest was taken
    chunks = [chunk.choices[0] for chunk in client.chat.completions.create(**options, stream=True)]
    streamed = [token for choice in chunks if choice.logprobs for token in choice.logprobs.content]
    assert [token.bytes for token in streamed] == [token.bytes for token in whole]


def test_penalties_and_biases_change_the_answer(client):
    def text(**options):
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


@pytest.mark.dev
def test_an_adapter_answers_in_the_form_of_its_rows(chat, parse, model, running, tmp_path):
    rows = [{"prompt": f"turn {i}", "completion": json.dumps({"room": ["hall", "attic"][i % 2], "level": i})}
            for i in range(12)]
    data = load_rows(rows, Tokenizer(model), max_length=64)
    train.run(open_bundle(model), data, tmp_path / "a", TrainConfig(steps=1, batch_size=4, max_length=64, threads=1))
    schema = json.loads((tmp_path / "a" / "schema.json").read_text())
    assert schema["properties"]["room"]["enum"] == ["attic", "hall"]
    assert describe(tmp_path / "a")["schema"] == schema
    adapter = running.service.adapters.add("job-1", tmp_path / "a", "s", {"passed": True, "reason": "a test"}).id
    assert httpx.get(f"{running.url}/v1/adapters/{adapter}").json()["structured"]
    options = {"model": adapter, "temperature": 2.0, "max_tokens": 100}
    for seed in range(5):
        assert jsonschema_rs.is_valid(schema, json.loads(chat(seed=seed, **options).message.content))
    for more in ({"response_format": {"type": "text"}}, {"model": "tiny"}):
        free = chat(**options | more, seed=0)
        assert not free.message.content.startswith("{")
    assert isinstance(parse(**options, seed=0, response_format=Door).message.parsed, Door)
    with LlamaModel(model, threads=1) as served:
        served.load_adapter(tmp_path / "a", "a")
        served.use("a")
        graded = grade(served, data).scores
        assert (graded.structured_parsed, graded.parsed) == (1.0, 0.0)
        assert grade(served, data, structured=False).scores.structured is None
