"""/v1/systemone and /v1/decisions: what a daemon answers, refuses and leaves to those who teach it."""

import json
import threading
from concurrent.futures import ThreadPoolExecutor
from types import SimpleNamespace

import httpx
import numpy as np
import pytest
from daemons import PATIENCE, daemon
from encoder_daemon import labelled, write_adapter
from thread_workers import ThreadWorker
from typed_asks import BOAT, DECISIONS, LISTED, PASSED, STATE, SYSTEM_ONE, ask, decide, sentence, teach
from typed_rows import KEYS, QUESTIONS, typed_rows

from edgetune.daemon.api.security import scope_of
from edgetune.daemon.keys import KeyScope, add_key
from edgetune.data.decisions import CHOICE, NO, NOUL, SCORE, YES, TypedQuestion
from edgetune.errors import TooMuchError
from edgetune.parts.decisions import openai as openai_routes
from edgetune.parts.decisions import systemone
from edgetune.parts.decisions.asking import DecisionRequest
from edgetune.parts.decisions.decided import Decided
from edgetune.serving.question import Question


def test_system_one_has_each_answer_with_its_probabilities(client, running, expected):
    said = ask(client)
    body = said.json()
    assert [*body] == ["model", "answers", "usage"]
    assert body["model"] == running.service.adapters.serving
    assert body["usage"] == {"input_tokens": len(running.service.served.tokenizer.encode(STATE)), "output_tokens": 0}
    assert [*body["answers"]] == [*QUESTIONS]
    lamp, kitchen, place = body["answers"].values()
    wanted = expected()
    assert [*lamp] == ["type", "choice", "confidence", "probabilities"]
    assert [*lamp["probabilities"]] == [*QUESTIONS["lamp"]["criteria"]]
    assert lamp["probabilities"] == pytest.approx(wanted["lamp"], abs=1e-6)
    assert lamp["choice"] == max(wanted["lamp"], key=wanted["lamp"].get) == "goes on"
    assert kitchen == {"type": "noul", "noul": pytest.approx(wanted["kitchen"]["true"], abs=1e-6)}
    assert [*place] == ["type", "score", "confidence", "legend", "probabilities"]
    assert place["legend"] == {"0": "near", "1": "there", "2": "far"}
    assert place["probabilities"] == pytest.approx(wanted["place"], abs=1e-6)
    assert place["score"] == pytest.approx(wanted["place"]["1"] + 2 * wanted["place"]["2"], abs=1e-6)
    for answer in (lamp, place):
        assert sum(answer["probabilities"].values()) == pytest.approx(1, abs=1e-9)
    assert said.headers["x-request-id"] == said.headers["x-typesafe-request-id"]
    assert said.headers["X-Edgetune-Adapter"] == body["model"]
    assert json.loads(said.headers["X-Edgetune-Recalled"]) == {}


def test_decisions_has_the_same_in_a_list(client):
    answers = ask(client).json()["answers"]
    said = decide(client, model="typed")
    body = said.json()
    assert [*body] == ["model", "answers", "usage"]
    lamp, kitchen, place = body["answers"]
    assert lamp == {"type": "choice", "name": "lamp", "choice": "goes on", "confidence": answers["lamp"]["confidence"],
                    "probabilities": [{"value": value, "probability": p}
                                      for value, p in answers["lamp"]["probabilities"].items()]}
    assert kitchen == {"type": "predicate", "name": None, "probability": answers["kitchen"]["noul"]}
    assert place == {"type": "score", "name": "place", "score": answers["place"]["score"],
                     "confidence": answers["place"]["confidence"],
                     "probabilities": [{"label": label, "value": i, "probability": p} for i, (label, p) in enumerate(
                         zip(("near", "there", "far"), answers["place"]["probabilities"].values(), strict=True))]}
    usage = body["usage"]
    assert usage["input_tokens"] == usage["total_tokens"] > 0
    assert usage["output_tokens"] == 0
    assert "X-Edgetune-Refused" not in said.headers


@pytest.mark.parametrize(("p", "choice", "score"), [  # by hand
    ([1, 0, 0], 1, 1), ([0.7, 0.2, 0.1], 0.55, 0.4), ([0, 0.32, 0.68], 0.52, 0.52), ([0.5, 0, 0.5], 0.25, 0),
    ([0.25, 0.25, 0.25, 0.25], 0, 0), ([0.1, 0.6, 0.2, 0.1], 0.466666667, 0.5), ([0.9, 0.1], 0.8, 0.8),
    ([0.2, 0.2, 0.2, 0.2, 0.2], 0, 0)])
def test_confidence_is_by_the_formulas_of_these_apis(p, choice, score):
    question = TypedQuestion(CHOICE, "?", tuple(map(str, range(len(p)))), ("",) * len(p))
    found = Decided(question, np.array(p, np.float64))
    assert found.confidence == pytest.approx(choice)
    assert found.confidence_of_score == pytest.approx(score)
    assert found.score == pytest.approx(sum(i * each for i, each in enumerate(p)))
    assert Decided(TypedQuestion(NOUL, "?", (NO, YES), ("", "")), np.array([0.3, 0.7])).yes == 0.7


def test_answers_are_in_the_order_of_the_questions(client):
    plain = ask(client).json()["answers"]
    for names in (["place", "lamp", "kitchen"], ["kitchen", "place", "lamp"]):
        asked = {name: QUESTIONS[name] for name in names}
        asked["lamp"] = {**asked["lamp"], "criteria": dict(reversed(asked["lamp"]["criteria"].items()))}
        found = ask(client, questions=asked).json()["answers"]
        assert [*found] == names
        assert [*found["lamp"]["probabilities"]] == ["stays", "goes off", "goes on"]
        assert found == {**plain, "lamp": {**plain["lamp"], "probabilities": found["lamp"]["probabilities"]}}
        assert found["lamp"]["probabilities"] == plain["lamp"]["probabilities"]
    assert [one["type"] for one in decide(client, questions=LISTED[::-1]).json()["answers"]] == [
        "score", "predicate", "choice"]


def test_one_question_has_the_answer_that_it_has_among_others(client):
    """Also 64 of them, under other names, and without meanings of their options."""
    plain = ask(client).json()["answers"]
    for name, question in QUESTIONS.items():
        assert ask(client, questions={name: question}).json()["answers"] == {name: plain[name]}
    names = ["\N{HIRAGANA LETTER A}" * 95 + str(i) for i in range(64)]
    bare = {**QUESTIONS["lamp"], "criteria": dict.fromkeys(QUESTIONS["lamp"]["criteria"])}
    said = ask(client, questions=dict.fromkeys(names, bare))
    assert said.json()["answers"] == dict.fromkeys(names, plain["lamp"])


def test_json_is_the_state_that_its_text_is(client, expected):
    state = {"room": "the kitchen", "say": ["turn on the light"]}
    found = ask(client, state).json()
    for same in (json.dumps(state), json.dumps(state, indent=2)):
        assert ask(client, same).json() == found
        assert decide(client, same, LISTED[1:2]).json()["answers"][0]["probability"] == pytest.approx(
            found["answers"]["kitchen"]["noul"])
    wanted = expected(json.dumps(state))
    assert found["answers"]["kitchen"]["noul"] == pytest.approx(wanted["kitchen"]["true"], abs=1e-6)
    said = [{"role": "user", "content": "turn on the light,"}, {"role": "assistant", "content": "the kitchen"}]
    assert ask(client, said).json() == ask(client, {"messages": said}).json() == ask(
        client, "user: turn on the light,\nassistant: the kitchen").json()


def test_openai_items_are_read(client):
    text = decide(client, "turn on the light").json()
    parts = [{"type": "input_text", "text": "turn on "}, {"type": "input_text", "text": "the light"}]
    assert decide(client, [{"type": "message", "role": "user", "content": parts}]).json() == text
    data = [{"role": "user", "content": [{"type": "input_json", "data": {"a": "b"}}]}]
    assert decide(client, data).json() == decide(client, '{"a": "b"}').json()
    calls = [{"type": "function_call", "name": "lamp", "arguments": "{}", "call_id": "1"},
             {"type": "function_call_output", "call_id": "1", "output": [{"type": "input_text", "text": "on"}]},
             {"role": "assistant", "content": [{"type": "refusal", "refusal": "no"}]}]
    assert decide(client, calls).json() == decide(
        client, "function_call lamp: {}\nfunction_call_output: on\nassistant: no").json()


def test_equal_questions_of_several_clients_are_answered_alike(client):
    """A hundred requests at once, of both kinds."""
    rows = typed_rows(25)
    plain = [ask(client, row["state"]).json()["answers"] for row in rows]
    with ThreadPoolExecutor(16) as pool:
        both = [pool.submit(call, client, row["state"]) for row in rows * 2 for call in (ask, decide)]
        found = [future.result().json()["answers"] for future in both]
    for i, (one, other) in enumerate(zip(found[::2], found[1::2], strict=True)):
        wanted = plain[i % len(rows)]
        assert one["lamp"]["choice"] == other[0]["choice"] == wanted["lamp"]["choice"]
        assert one["lamp"]["probabilities"] == pytest.approx(wanted["lamp"]["probabilities"], abs=1e-3)
        assert other[1]["probability"] == pytest.approx(wanted["kitchen"]["noul"], abs=1e-5)


# ---- what was not learned ----------------------------------------------------------------------------------------


def test_a_question_that_was_not_learned_is_refused_with_the_way_to_teach_it(client):
    said = ask(client, questions={**QUESTIONS, "boat": {**BOAT, "instructions": "sail"}}, status=422)
    assert sentence(said).startswith("the question 'boat' was not learned")
    assert "/v1/feedback" in sentence(said)
    assert said.json()["detail"] == sentence(said)
    assert said.json()["error"]["type"] == "invalid_request_error"
    assert said.headers["x-typesafe-request-id"].startswith("dec_")
    body = decide(client, questions=[LISTED[0], {"type": "predicate", "name": "boat", "instructions": "sail"},
                                     {"type": "predicate", "instructions": "is\nit\nlate"}, LISTED[2]])
    assert [one["type"] for one in body.json()["answers"]] == ["choice", "refusal", "refusal", "score"]
    assert body.json()["answers"][1:3] == [{"type": "refusal", "name": "boat"}, {"type": "refusal", "name": None}]
    assert body.headers["X-Edgetune-Refused"].startswith("the question 'boat' was not learned")
    assert "the question '2' was not learned" in body.headers["X-Edgetune-Refused"]
    assert body.json()["answers"][0] == decide(client).json()["answers"][0]


def test_a_reworded_question_is_proposed_and_not_taken(client):
    asked = {"lit": {**QUESTIONS["lamp"], "instructions": "what happens to the  lamp"}}
    said = ask(client, questions=asked, status=422)
    assert "was not learned; near to it is 'What happens to the lamp?'; ask in those words" in sentence(said)
    spaced = {"lit": {**QUESTIONS["lamp"], "instructions": " What happens  to the lamp? "}}
    assert ask(client, questions=spaced).json()["answers"]["lit"] == ask(client).json()["answers"]["lamp"]
    other = {"lit": {"type": "noul", "instructions": "What happens to the lamp?"}}  # of another type
    assert "near to it is 'Is it the kitchen?'" in sentence(ask(client, questions=other, status=422))


def test_of_fewer_options_the_others_have_all_probability(client):
    whole = ask(client).json()["answers"]["lamp"]["probabilities"]
    fewer = {"lamp": {**QUESTIONS["lamp"], "criteria": {"stays": None, "goes  on": "there is light"}}}
    found = ask(client, questions=fewer).json()["answers"]["lamp"]
    assert [*found["probabilities"]] == ["stays", "goes  on"]  # as they are written
    assert found["choice"] == "goes  on"
    assert found["probabilities"]["stays"] == pytest.approx(whole["stays"] / (whole["stays"] + whole["goes on"]))
    assert json.loads(ask(client, questions=fewer).headers["X-Edgetune-Sure"]) == []  # nothing is known of so few
    more = {"lamp": {**QUESTIONS["lamp"], "criteria": {**QUESTIONS["lamp"]["criteria"], "burns": None}}}
    said = ask(client, questions=more, status=422)
    assert "the option 'burns' of the question 'lamp' was not learned, only goes off, goes on, stays" in sentence(said)
    listed = [{**LISTED[0], "choices": [{"value": "stays"}, {"value": "burns"}]}]
    assert decide(client, questions=listed).json()["answers"] == [{"type": "refusal", "name": "lamp"}]


def test_label_rows_answer_any_choice_among_their_labels(client):
    question = {"type": "choice", "instructions": "Which way?", "criteria": {"lamp_on": None, "lamp_off": None}}
    found = ask(client, "turn off the light a", {"way": question}, model="plain").json()
    labels = client.post("/v1/classify", json={"input": "turn off the light a", "model": "plain"}).json()
    assert found["answers"]["way"]["probabilities"] == pytest.approx(
        dict(zip(labels["labels"], labels["data"][0]["probs"], strict=True)), abs=1e-6)
    for other in ({"type": "noul", "instructions": "Is it?"}, {**question, "criteria": {"lamp_on": None, "x": None}}):
        assert "/v1/feedback" in sentence(ask(client, questions={"way": other}, status=422, model="plain"))
    ask(client, questions={"way": question}, status=422)  # of the active adapter


def test_label_rows_say_nothing_of_yes_and_no(model, tmp_path):
    """Labels named true, false, 0 and 1 are no answer to a question of any wording."""
    rows = [{**row, "completion": {"lamp_on": "true", "lamp_off": "false"}[row["completion"]]} for row in labelled()]
    digits = [{**row, "completion": {"true": "1", "false": "0"}[row["completion"]]} for row in rows]
    with daemon(model, tmp_path / "state", start_process=ThreadWorker) as made, httpx.Client(
            base_url=made.url, timeout=PATIENCE) as client:
        for name, each in (("words", rows), ("digits", digits)):
            folder = write_adapter(model, tmp_path / name, each)
            added = made.service.adapters.add(f"ftjob-{name}", folder, name, PASSED)
            for question in (BOAT, {"type": "score", "instructions": "How?", "criteria": ["no", "yes"]}):
                ask(client, questions={"q": question}, status=422, model=added.id)


def test_the_encoder_alone_answers_nothing(client, running):
    said = ask(client, status=422, model="enc")
    assert sentence(said) == ("the question 'lamp' was not learned; ask enc:latest, which has an adapter, or leave "
                              "model out")
    assert said.headers["X-Edgetune-Adapter"] == ""
    assert [one["type"] for one in decide(client, model="enc").json()["answers"]] == ["refusal"] * 3
    assert running.service.served.encoder


def test_models_are_listed_for_both_kinds_of_clients(client):
    found = client.get("/v1/models").json()
    assert [*map(sorted, found["models"])] == [["description", "name", "release_date"]] * len(found["models"])
    assert [one["name"] for one in found["models"]] == [one["id"] for one in found["data"]]
    for one in found["models"]:
        assert len(one["release_date"].split("-")) == 3
        assert ask(client, model=one["name"], status=422 if one["name"] == "enc" or "plain" in one["name"] else 200)


def test_an_adapter_of_typed_questions_answers_other_apis(client):
    """A chat asks for all questions at once, or for one by its key as the system message."""
    user = {"role": "user", "content": STATE}
    said = client.post("/v1/chat/completions", json={"messages": [user], "logprobs": True, "top_logprobs": 3}).json()
    found = json.loads(said["choices"][0]["message"]["content"])
    answers = ask(client).json()["answers"]
    assert found == {KEYS["lamp"]: answers["lamp"]["choice"], KEYS["kitchen"]: "true", KEYS["place"]: "1"}
    assert said["choices"][0]["logprobs"]["content"][0]["top_logprobs"] == []
    said = client.post("/v1/chat/completions", json={
        "messages": [{"role": "system", "content": KEYS["lamp"]}, user], "logprobs": True, "top_logprobs": 3}).json()
    token, = said["choices"][0]["logprobs"]["content"]
    assert token["token"] == answers["lamp"]["choice"]
    assert {one["token"]: np.exp(one["logprob"]) for one in token["top_logprobs"]} == pytest.approx(
        answers["lamp"]["probabilities"], abs=1e-5)
    said = client.post("/v1/classify", json={"input": STATE}).json()
    assert said["labels"] == []
    assert json.loads(said["data"][0]["label"]) == found
    assert said["data"][0]["num_classes"] == len(said["data"][0]["probs"]) == 1


# ---- rights, and what happens meanwhile ------------------------------------------------------------------------------


def test_a_key_that_may_ask_may_not_teach(model, adapters, tmp_path):
    keys = {scope: add_key(tmp_path / "keys", scope.word, scope)
            for scope in (KeyScope.ANSWER, KeyScope.FEEDBACK, KeyScope.ADMIN)}
    routes = [*systemone.router.routes, *openai_routes.router.routes]
    assert {route.path: scope_of(route) for route in routes} == dict.fromkeys([SYSTEM_ONE, DECISIONS], KeyScope.ANSWER)
    with daemon(model, tmp_path / "state", start_process=ThreadWorker, key_file=str(tmp_path / "keys")) as made:
        added = made.service.adapters.add("ftjob-0", adapters["typed"], "typed", PASSED)
        made.service.adapters.promote(added.id, "for the test")
        with httpx.Client(base_url=made.url, timeout=PATIENCE) as client:
            ask(client, status=401)
            for scope, feedback, learns in ((KeyScope.ANSWER, 403, 403), (KeyScope.FEEDBACK, 200, 403)):
                client.headers["Authorization"] = f"Bearer {keys[scope]}"
                said = ask(client)
                decide(client)
                teach(client, said, "lamp", feedback, correction="stays")
                assert client.post("/v1/learn", json={}).status_code == learns


@pytest.mark.dev
def test_an_answer_is_of_the_adapter_that_the_response_names(client, running, model, tmp_path):
    """While adapters with other questions, whose labels have other places, become active one after another."""
    kitchen = [{**row, "expected": {"kitchen": row["expected"]["kitchen"]}} for row in typed_rows(30)]
    made = running.service.adapters
    typed, other = made.serving, made.add("ftjob-k", write_adapter(model, tmp_path / "k", kitchen), "k", PASSED).id
    question = {"kitchen": QUESTIONS["kitchen"]}
    wanted = {id: ask(client, questions=question, model=id).json()["answers"]["kitchen"]["noul"]
              for id in (typed, other)}
    done = threading.Event()

    def change():
        while not done.is_set():
            for id in (other, typed):
                made.promote(id, "for the test")

    changing = threading.Thread(target=change)
    changing.start()
    seen = set()
    try:
        for _ in range(200):
            said = client.post(SYSTEM_ONE, json={"state": STATE, "questions": question})
            if said.status_code != 429:
                assert said.status_code == 200, said.text
                id = said.headers["X-Edgetune-Adapter"]
                assert said.json()["answers"]["kitchen"]["noul"] == pytest.approx(wanted[id], abs=1e-6)
                seen.add(id)
    finally:
        done.set()
        changing.join()
        made.promote(typed, "for the test")
    assert seen == {typed, other}
    assert wanted[typed] != pytest.approx(wanted[other], abs=1e-3)


def test_an_answer_of_another_adapter_than_was_asked_is_not_read(running):
    """Its labels have other places."""
    question = TypedQuestion(SCORE, "How far is it?", ("0", "1", "2"), ("near", "there", "far"))
    asked = DecisionRequest(running.service, STATE, {"place": question})
    asked.adapter = "another"
    asked.reader = running.service.served.reader(running.service.adapters.serving)
    answer = running.service.ask(running_question(STATE))
    answer.text()
    with pytest.raises(TooMuchError, match="another adapter became active"):
        asked._read("place", question, [answer])
    gone = SimpleNamespace(error=None, finish="cancelled")
    with pytest.raises(Exception, match="broken off because the daemon stops"):
        asked._read("place", question, [gone])


def running_question(state):
    return Question([{"role": "system", "content": KEYS["place"]}, {"role": "user", "content": state}])
