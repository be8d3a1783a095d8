"""Clients that nobody here wrote ask a daemon typed questions; each is skipped where it is not installed."""

import asyncio
import json
from types import SimpleNamespace
from typing import Literal

import httpx
import openai
import pytest
from daemons import PATIENCE, daemon, openai_client
from encoder_daemon import write_adapter
from thread_workers import ThreadWorker
from typed_asks import BOAT, PASSED, STATE
from typed_rows import QUESTIONS, typed_rows

NAME = "enc:latest"
LAMP, FAR = QUESTIONS["lamp"], QUESTIONS["place"]
IS_KITCHEN = QUESTIONS["kitchen"]["instructions"]
pytestmark = [pytest.mark.filterwarnings("ignore::DeprecationWarning"), pytest.mark.filterwarnings("ignore:.*in beta")]


def serving(model, folder, rows):
    """A daemon whose active adapter learned rows."""
    running = daemon(model, folder / "state", start_process=ThreadWorker)
    made = running.__enter__()
    added = made.service.adapters.add("ftjob-0", write_adapter(model, folder / "adapter", rows), "typed", PASSED)
    made.service.adapters.promote(added.id, "for the test")
    return running, made


@pytest.fixture(scope="module")
def url(model, tmp_path_factory):
    running, made = serving(model, tmp_path_factory.mktemp("served"), typed_rows())
    yield made.url
    running.__exit__(None, None, None)


@pytest.fixture(scope="module")
def answers(url):
    """What the daemon says to a plain request."""
    return asked(url)


def asked(url, state=STATE):
    said = httpx.post(f"{url}/v1/systemone", json={"state": state, "questions": QUESTIONS}, timeout=PATIENCE)
    return said.json()["answers"]


# ---- TypeSafe's --------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def typesafe():
    """Its module, and the questions in its classes."""
    sdk = pytest.importorskip("typesafe_sdk", reason="typesafe-sdk is not installed")
    questions = {"lamp": sdk.Choice(instructions=LAMP["instructions"], criteria=LAMP["criteria"]),
                 "kitchen": sdk.Noul(instructions=IS_KITCHEN),
                 "place": sdk.Score(instructions=FAR["instructions"], criteria=FAR["criteria"])}
    return SimpleNamespace(sdk=sdk, questions=questions)


def same_as(found, answers):
    """Whether an answer of TypeSafe's client, or of LangChain's, is the daemon's."""
    lamp, kitchen, place = found.choices["lamp"], found.nouls["kitchen"], found.scores["place"]
    assert (lamp.choice, lamp.confidence) == (answers["lamp"]["choice"], answers["lamp"]["confidence"])
    assert lamp.probabilities == answers["lamp"]["probabilities"]
    assert kitchen.noul == answers["kitchen"]["noul"]
    assert (place.score, place.confidence) == (answers["place"]["score"], answers["place"]["confidence"])
    assert place.legend == {int(level): text for level, text in answers["place"]["legend"].items()}
    assert place.probabilities == {int(level): p for level, p in answers["place"]["probabilities"].items()}


def test_typesafe_sdk_asks_and_lists_models(url, typesafe, answers):
    with typesafe.sdk.TypeSafeClient(api_key="none", base_url=url, model=NAME) as client:
        found = client.system_one(state=STATE, questions=typesafe.questions)
        same_as(found, answers)
        assert found.model.startswith("ft:enc")
        assert (found.usage.input_tokens > 0, found.usage.output_tokens) == (True, 0)
        assert NAME in [each.name for each in client.models.list().models]
        by_json = client.system_one(state={"say": STATE, "words": ["light"]}, questions=typesafe.questions)
        same_as(by_json, asked(url, {"say": STATE, "words": ["light"]}))
        long = "the light " * 120  # more than 1,024 bytes
        same_as(client.system_one(state=long, questions=typesafe.questions), asked(url, long))


def test_typesafe_sdk_is_told_what_is_wrong_and_its_id_takes_a_correction(url, typesafe):
    sdk = typesafe.sdk
    with sdk.TypeSafeClient(api_key="none", base_url=url, model=NAME) as client:
        boat = {"boat": sdk.Noul(instructions="Is it a boat by this client?")}
        with pytest.raises(sdk.TypeSafeUnprocessableEntityError, match="the question 'boat' was not") as refused:
            client.system_one(state=STATE, questions=boat)
        id = refused.value.request_id
        assert id.startswith("dec_")
        given = httpx.post(f"{url}/v1/feedback", json={"completion_id": id, "question": "boat", "correction": "true"})
        assert given.status_code == 200, given.text
        assert client.system_one(state=STATE, questions=boat).nouls["boat"].noul == 1
        said = client.system_one(state="the light by this client", questions=typesafe.questions)
        feedback = {"completion_id": said.request_id, "question": "lamp", "correction": "goes off"}
        assert httpx.post(f"{url}/v1/feedback", json=feedback).status_code == 200
        again = client.system_one(state="the light by this client", questions=typesafe.questions)
        assert again.choices["lamp"].choice == "goes off"
    with sdk.TypeSafeClient(api_key="none", base_url=url) as client, pytest.raises(
            sdk.TypeSafeNotFoundError, match="there is no model 'jev-latest'; there are enc, enc:latest"):
        client.system_one(state=STATE, questions=typesafe.questions)


def test_typesafe_sdk_asks_many_at_once(url, typesafe):
    async def ask(count):
        async with typesafe.sdk.AsyncTypeSafeClient(api_key="none", base_url=url, model=NAME) as client:
            return await asyncio.gather(*(client.system_one(state=row["state"], questions=typesafe.questions)
                                          for row in typed_rows(count)))

    found = asyncio.run(ask(20))
    for said, row in list(zip(found, typed_rows(20), strict=True))[::7]:
        one = asked(url, row["state"])
        assert said.choices["lamp"].choice == one["lamp"]["choice"]
        assert said.nouls["kitchen"].noul == pytest.approx(one["kitchen"]["noul"], abs=1e-5)


# ---- OpenAI's ----------------------------------------------------------------------------------------------------

LISTED = [{"type": "choice", "name": "lamp", "instructions": LAMP["instructions"],
           "choices": [{"value": "goes on", "description": "there is light"}, {"value": "goes off"}]},
          {"type": "predicate", "instructions": IS_KITCHEN},
          {"type": "score", "name": "place", "instructions": FAR["instructions"],
           "levels": [{"label": label} for label in FAR["criteria"]]},
          {"type": "predicate", "name": "boat", "instructions": "Is it a boat by OpenAI's client?"}]


def test_openais_client_decides(url, answers):
    with openai_client(url) as client:
        if not hasattr(client, "decisions"):
            pytest.skip("this version of openai has no decisions")
        said = client.decisions.create(model=NAME, input=STATE, questions=LISTED)
        lamp, kitchen, place, boat = said.answers
        assert [one.type for one in said.answers] == ["choice", "predicate", "score", "refusal"]
        whole = answers["lamp"]["probabilities"]
        two = {value: whole[value] / (whole["goes on"] + whole["goes off"]) for value in ("goes on", "goes off")}
        assert {one.value: one.probability for one in lamp.probabilities} == pytest.approx(two)
        assert (lamp.choice, lamp.confidence) == ("goes on", pytest.approx(2 * two["goes on"] - 1))
        assert kitchen.probability == answers["kitchen"]["noul"]
        assert [(one.label, one.value) for one in place.probabilities] == [("near", 0), ("there", 1), ("far", 2)]
        assert (place.score, place.confidence) == (answers["place"]["score"], answers["place"]["confidence"])
        assert (boat.name, kitchen.name) == ("boat", None)
        assert said.usage.total_tokens == said.usage.input_tokens > 0
        type(said).model_validate(json.loads(said.model_dump_json()), strict=True)
        feedback = {"completion_id": said._request_id, "question": "boat", "correction": "true"}
        client.post("/feedback", body=feedback, cast_to=object)
        again = client.decisions.create(model=NAME, input=[{"role": "user", "content": STATE}], questions=LISTED[3:])
        assert again.answers[0].probability == 1


# ---- pydantic-ai's agents --------------------------------------------------------------------------------------------


@pytest.fixture(params=["system_one", "openai"])
def agent_model(request, url):
    pytest.importorskip("pydantic_ai", reason="pydantic-ai-slim is not installed")
    if request.param == "system_one":
        models = pytest.importorskip("pydantic_ai.models.system_one", reason="this pydantic-ai knows no System One")
        from pydantic_ai.providers.system_one import SystemOneProvider
        return models.SystemOneModel(NAME, provider=SystemOneProvider(base_url=url, api_key="none"))
    models = pytest.importorskip("pydantic_ai.models.openai_decisions", reason="this pydantic-ai knows no decisions")
    from pydantic_ai.providers.openai import OpenAIProvider
    return models.OpenAIDecisionsModel(NAME, provider=OpenAIProvider(base_url=f"{url}/v1", api_key="none"))


def test_an_agent_of_pydantic_ai_fills_its_fields(agent_model, answers):
    """It writes a question as {"field", "question"}, which is that question."""
    from pydantic import BaseModel, Field
    from pydantic_ai import Agent

    class Found(BaseModel):
        lamp: Literal["goes on", "goes off", "stays"] = Field(description=LAMP["instructions"])
        kitchen: bool = Field(description=IS_KITCHEN)

    async def ask():
        async with Agent(agent_model, output_type=Found) as agent:
            return await agent.run(STATE)

    done = asyncio.run(ask())
    assert done.output == Found(lamp=answers["lamp"]["choice"], kitchen=answers["kitchen"]["noul"] >= 0.5)
    details = json.dumps(done.all_messages()[1].provider_details)
    assert f'"goes on": {answers["lamp"]["probabilities"]["goes on"]}'[:18] in details


def test_an_agent_of_pydantic_ai_hears_of_a_question_that_was_not_learned(agent_model):
    from pydantic import BaseModel, Field
    from pydantic_ai import Agent
    from pydantic_ai.exceptions import AgentRunError

    class Found(BaseModel):
        boat: bool = Field(description="Is it a boat by an agent?")

    async def ask():
        async with Agent(agent_model, output_type=Found) as agent:
            return await agent.run(STATE)

    with pytest.raises(AgentRunError, match="boat"):
        asyncio.run(ask())


# ---- LangChain's -----------------------------------------------------------------------------------------------------


def test_langchain_decides_by_openais_api(url, answers):
    decisions = pytest.importorskip("langchain_openai.decisions", reason="this langchain-openai has no decisions")
    with openai.DefaultHttpxClient() as http:
        model = decisions.OpenAIDecisions(model=NAME, api_key="none", base_url=f"{url}/v1", http_client=http)
        said = model.invoke({"input": STATE, "questions": {
            "lamp": decisions.Choice(instructions=LAMP["instructions"], choices=dict.fromkeys(LAMP["criteria"], "so")),
            "kitchen": decisions.Predicate(instructions=IS_KITCHEN),
            "place": decisions.Score(instructions=FAR["instructions"], levels=FAR["criteria"]),
            "boat": decisions.Predicate(instructions="Is it a boat by LangChain?")}})
    assert said.choices["lamp"].probabilities == answers["lamp"]["probabilities"]
    assert said.predicates["kitchen"].probability == answers["kitchen"]["noul"]
    assert said.scores["place"].legend == dict(enumerate(FAR["criteria"]))
    assert [*said.refusals] == ["boat"]
    assert said.request_id.startswith("dec_")


def test_langchain_decides_by_typesafes_api(url, answers):
    package = pytest.importorskip("langchain_typesafe", reason="langchain-typesafe is not installed")
    types = pytest.importorskip("langchain_core.decisions")
    model = package.TypeSafeClassifier(model=NAME, api_key="none", base_url=url)
    with model.client:
        said = model.invoke({"state": STATE, "questions": {
            "lamp": types.Choice(instructions=LAMP["instructions"], criteria=LAMP["criteria"]),
            "kitchen": types.Noul(instructions=IS_KITCHEN),
            "place": types.Score(instructions=FAR["instructions"], criteria=FAR["criteria"])}})
    same_as(said, answers)


# ---- laya's, and jevbench ------------------------------------------------------------------------------------------


def test_the_tools_of_laya_answer_from_the_daemon(url, answers):
    """Those of its MCP server, with LAYA_BASE_URL."""
    remote = pytest.importorskip("laya.mcp.remote", reason="laya is not installed")
    from laya.mcp.tools import ToolError, laya_predict, laya_predict_batch, laya_status
    router = remote.RemoteRouter(url, api_key="none")
    assert router.predict(STATE, QUESTIONS)["answers"] == answers
    by_json = asked(url, {"text": STATE})
    assert laya_predict({"text": STATE}, QUESTIONS, router=router)["answers"] == by_json
    found = laya_predict_batch([{"state": {"text": STATE}, "questions": QUESTIONS}] * 2, router=router)
    assert [one["answers"] for one in found["requests"]] == [by_json] * 2
    assert laya_status(router=router)
    with pytest.raises(ToolError, match="the question 'boat' was not learned"):
        laya_predict({"text": STATE}, {"boat": {**BOAT, "instructions": "Is it a boat by laya?"}}, router=router)


def test_jevbench_finds_the_answers_in_the_standard_form(model, tmp_path):
    jevbench = pytest.importorskip("jevbench", reason="jevbench is not installed")
    from jevbench.suites import load_suite
    questions = load_suite("examples").cases[0].questions
    options = {name: [False, True] if question["type"] == "noul" else
               [*question["criteria"]] if question["type"] == "choice" else [*range(len(question["criteria"]))]
               for name, question in questions.items()}
    rows = [{"state": f"the light {'abcdefghijkl'[i]}", "questions": questions,
             "expected": {name: each[i % len(each)] for name, each in options.items()}} for i in range(12)]
    running, made = serving(model, tmp_path, rows)
    try:
        benched = jevbench.systemone(f"{made.url}/v1/systemone", model=NAME, api_key="none")
        with benched.client:
            found = jevbench.check(benched)
        assert sum(found["questions"].values()) == len(questions) >= 5
    finally:
        running.__exit__(None, None, None)
