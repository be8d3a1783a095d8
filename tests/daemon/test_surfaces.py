"""Features that the APIs for answers share, by their official clients: each is asked the same, whole and streamed."""

import json
from dataclasses import replace

import pytest
from surfaces import CHAT, COMPLETIONS, SURFACES, Clients

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


def of(surfaces):
    return pytest.mark.parametrize("surface", surfaces, ids=lambda surface: surface.name)


each = of(SURFACES)
streamed_or_not = pytest.mark.parametrize("stream", [False, True])


@pytest.fixture(scope="module")
def clients(running, client):
    """Corrections answer one question by text, and one, where the lamp is shown, by text and two calls."""
    service = running.service
    service.feedback.add(messages=ASK, answer="", correction=TAUGHT, model="tiny")
    service.feedback.add(messages=CALLING, tools=[TOOL], answer="", correction=f"now {CALL}\n{CALL}", model="tiny")
    return Clients(client, running.url, lambda messages: service.served.tokenizer.render(
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


@of([surface for surface in SURFACES if surface.stop])
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


@of([surface for surface in SURFACES if surface.tools])
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
    if surface.ids:  # of calls, too
        assert after == CHAT(clients, more, False, "tiny", tools=[TOOL], max_tokens=1).prompt


@of([surface for surface in SURFACES if surface.required])
@streamed_or_not
def test_a_call_can_be_required(clients, surface, stream):
    said = surface(clients, ASK, stream, "tiny", tools=[TOOL], required=True)
    (name, arguments), = said.calls
    assert (name, type(arguments["on"]), said.text) == ("lamp", bool, "")


@of([surface for surface in SURFACES if surface.ids])
@streamed_or_not
def test_an_answer_is_corrected_by_its_id(clients, running, surface, stream):
    question = [{"role": "user", "content": f"{surface.name} {stream}"}]
    said = surface(clients, question, stream, "tiny", max_tokens=2)
    note = clients.openai.post("/feedback", body={"completion_id": said.id, "correction": TAUGHT}, cast_to=object)
    row = running.service.feedback.get(note["id"]).row
    expected = {"prompt": clients.render(question), "completion": TAUGHT} if surface is COMPLETIONS else {
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
    with pytest.raises(surface.error, match=says) as caught:
        surface(clients, messages, False, **{"model": "tiny", **options})
    assert caught.value.status_code == status
