"""What programs are written with, against one daemon: LangChain and Pydantic AI, each by its typical calls.

The model is tiny and says nothing by itself that could be foretold: texts and calls are corrections of its answers, and
forms hold by construction.
"""

import asyncio
from typing import Literal

import numpy as np
import openai
import pytest
from pydantic import BaseModel, Field

SHAPE = {"formats": "F32", "n_context": 2048}
DAEMON = {"context": 2048}
TAUGHT = "the light off"
CALL = '<tool_call>{"name": "lamp", "arguments": {"on": true}}</tool_call>'


class Room(BaseModel):
    name: Literal["hall", "attic"]


class Lamp(BaseModel):
    on: bool
    rooms: list[Room] = Field(min_length=1, max_length=2)
    level: int | None = Field(None, ge=0, le=9)


@pytest.fixture(scope="module", autouse=True)
def taught(running):
    running.service.feedback.add(messages=[{"role": "user", "content": "turn"}], answer="", correction=TAUGHT,
                                 model="tiny")


def correct(client, answer, words):
    """So that the same question is answered with these words from now on. answer: its id."""
    client.post("/feedback", body={"completion_id": answer, "correction": words}, cast_to=object)


def test_an_event_has_one_part_of_a_call(client):
    """As OpenAI's: clients such as instructor read the first alone."""
    tools = [openai.pydantic_function_tool(Room)]
    stream = client.chat.completions.create(model="tiny", messages=[{"role": "user", "content": "on"}], tools=tools,
                                            tool_choice="required", stream=True)
    events = [chunk.choices[0].delta.tool_calls for chunk in stream if chunk.choices[0].delta.tool_calls]
    assert {len(calls) for calls in events} == {1}
    assert [calls[0].function.name for calls in events] == ["Room"] + [None] * (len(events) - 1)
    assert Room.model_validate_json("".join(calls[0].function.arguments for calls in events))


@pytest.fixture(scope="module")
def chain(running):
    from langchain_openai import ChatOpenAI

    return ChatOpenAI(base_url=f"{running.url}/v1", api_key="none", model="tiny:latest", max_retries=0)


@pytest.mark.dev
def test_langchain_asks_streams_and_embeds(chain, running, client):
    said = chain.invoke([("user", "turn")])
    assert (said.content, said.response_metadata["finish_reason"]) == (TAUGHT, "stop")
    assert said.usage_metadata["total_tokens"] > said.usage_metadata["output_tokens"] > 2
    pieces = list(chain.stream([("user", "turn")], stream_usage=True))
    assert "".join(piece.content for piece in pieces) == TAUGHT
    assert sum(piece.usage_metadata["output_tokens"] for piece in pieces if piece.usage_metadata) > 2
    base = chain.bind(model="tiny", max_completion_tokens=40)
    assert "".join(piece.content for piece in base.stream("on")) == base.invoke("on").content != ""
    assert [answer.content for answer in chain.batch(["turn"] * 3)] == [TAUGHT] * 3
    assert chain.model_copy(update={"use_responses_api": True}).invoke("turn").text == TAUGHT
    from langchain_openai import OpenAIEmbeddings

    vectors = OpenAIEmbeddings(base_url=f"{running.url}/v1", api_key="none", model="tiny",
                               check_embedding_ctx_length=False)
    texts = ["turn the light on", "off"]
    expected = [item.embedding for item in client.embeddings.create(model="tiny", input=texts).data]
    np.testing.assert_allclose(vectors.embed_documents(texts), expected, atol=1e-6)
    np.testing.assert_allclose(vectors.embed_query(texts[1]), expected[1], atol=1e-4)


@pytest.mark.dev
@pytest.mark.filterwarnings("ignore:Pydantic serializer warnings")  # LangChain's, of what OpenAI's client has parsed
@pytest.mark.parametrize("method", ["json_schema", "function_calling"])
def test_langchain_gets_a_form(chain, method):
    form = chain.with_structured_output
    found = form(Lamp, method=method).invoke("on")
    assert isinstance(found, Lamp)
    *_, last = form(Lamp, method=method).stream("on")
    assert last == found


def test_langchain_gets_an_object_of_any_form(chain):
    """The model decides its keys."""
    found = chain.with_structured_output(None, method="json_mode").invoke("Say it as JSON.")
    assert isinstance(found, dict)


def test_langchain_calls_tools_and_shows_what_they_said(chain, client):
    from langchain_core.messages import HumanMessage, ToolMessage
    from langchain_core.tools import tool

    @tool
    def lamp(on: bool) -> str:
        """Switch the lamp."""
        return f"it is {'on' if on else 'off'}"

    forced = chain.bind_tools([lamp], tool_choice="any").invoke("on")
    call, = forced.tool_calls
    assert (call["name"], type(call["args"]["on"])) == ("lamp", bool)
    named = chain.bind_tools([lamp, Room], tool_choice="Room").invoke("on")
    assert Room(**named.tool_calls[0]["args"])
    bound = chain.bind_tools([lamp]).bind(max_completion_tokens=2)
    question = HumanMessage("the lamp, please")
    correct(client, bound.invoke([question]).response_metadata["id"], CALL)
    free = chain.bind_tools([lamp])
    said = free.invoke([question])
    call, = said.tool_calls
    assert (call["name"], call["args"], said.content) == ("lamp", {"on": True}, "")
    streamed = list(free.stream([question]))
    whole = streamed[0]
    for piece in streamed[1:]:
        whole += piece
    assert [(each["name"], each["args"]) for each in whole.tool_calls] == [("lamp", {"on": True})]
    after = [question, said, ToolMessage(lamp.invoke(call["args"]), tool_call_id=call["id"])]
    correct(client, bound.invoke(after).response_metadata["id"], TAUGHT)
    assert free.invoke(after).content == TAUGHT


@pytest.fixture(scope="module")
def agents(running):
    """Makes agents, each to be entered: that closes their connections. api: chat or responses."""
    from pydantic_ai import Agent
    from pydantic_ai.models.openai import OpenAIChatModel, OpenAIResponsesModel
    from pydantic_ai.providers.openai import OpenAIProvider
    kinds = {"chat": OpenAIChatModel, "responses": OpenAIResponsesModel}

    def make(api, **options):
        provider = OpenAIProvider(base_url=f"{running.url}/v1", api_key="none")
        return Agent(kinds[api]("tiny:latest", provider=provider), **options)

    return make


@pytest.mark.dev
@pytest.mark.parametrize("api", ["chat", "responses"])
def test_pydantic_ai_gets_a_form_and_streams(agents, api):
    from pydantic_ai import NativeOutput

    async def ask(output, **settings):
        async with agents(api, output_type=output) as agent:
            return (await agent.run("on", model_settings=settings)).output

    async def stream():
        async with agents(api) as agent, agent.run_stream("turn") as stream:
            text = "".join([piece async for piece in stream.stream_text(delta=True)])
        async with agents(api, output_type=Lamp) as agent, agent.run_stream("on") as stream:
            return text, await stream.get_output()

    assert isinstance(asyncio.run(ask(Lamp)), Lamp)
    assert isinstance(asyncio.run(ask(NativeOutput(Lamp))), Lamp)
    assert isinstance(asyncio.run(ask([Lamp, Room], temperature=1.5)), Lamp | Room)
    text, lamp = asyncio.run(stream())
    assert (text, type(lamp)) == (TAUGHT, Lamp)


@pytest.mark.parametrize("api", ["chat", "responses"])
def test_pydantic_ai_calls_tools(agents, client, api):
    called = []

    def lamp(on: bool) -> str:
        """Switch the lamp."""
        called.append(on)
        return "done"

    async def ask(most):
        async with agents(api, tools=[lamp]) as agent:
            result = await agent.run(f"the lamp by {api}", model_settings={"max_tokens": most})
            return result.all_messages()

    correct(client, asyncio.run(ask(2))[-1].provider_response_id, CALL)
    kinds = [part.part_kind for message in asyncio.run(ask(300)) for part in message.parts]
    assert called == [True]
    assert kinds == ["user-prompt", "tool-call", "tool-return", "text"]
