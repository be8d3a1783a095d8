"""/v1/systemone and /v1/decisions of a daemon whose tiny encoder learned three typed questions."""

import json
import logging
from concurrent.futures import ThreadPoolExecutor
from types import SimpleNamespace

import httpx
import numpy as np
import pytest
from daemons import PATIENCE, daemon
from encoder_daemon import OPTIONS, labelled, write_adapter, write_tiny_encoder
from thread_workers import ThreadWorker
from tiny import write_tiny
from typed_rows import KEYS, QUESTIONS, typed_rows

from edgetune.daemon.api.security import scope_of
from edgetune.daemon.keys import KeyScope, add_key
from edgetune.data.decisions import CHOICE, NO, NOUL, SCORE, YES, TypedQuestion, prompt_of
from edgetune.errors import TooMuchError
from edgetune.formats.gguf import open_gguf
from edgetune.machine.policy import Policy
from edgetune.parts.decisions import openai as openai_routes
from edgetune.parts.decisions import systemone
from edgetune.parts.decisions.asking import DecisionRequest
from edgetune.parts.decisions.decided import Decided
from edgetune.serving.encoder import Encoder
from edgetune.training.config import TrainConfig

SYSTEM_ONE, DECISIONS = "/v1/systemone", "/v1/decisions"
STATE = "turn on the light, the kitchen q"
PASSED = {"passed": True, "reason": "for a test"}
BOAT = {"type": "noul", "instructions": "Is it a boat?"}
LISTED = [{"type": "choice", "name": "lamp", "instructions": "What happens to the lamp?",
           "choices": [{"value": label, "description": text} if text else {"value": label}
                       for label, text in QUESTIONS["lamp"]["criteria"].items()]},
          {"type": "predicate", "instructions": "Is it the kitchen?"},
          {"type": "score", "name": "place", "instructions": [{"type": "input_text", "text": "How far is it?"}],
           "levels": [{"label": "near"}, {"label": "there", "description": "in between"}, {"label": "far"}]}]


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return write_tiny_encoder(tmp_path_factory.mktemp("encoder") / "enc.gguf")


@pytest.fixture(scope="module")
def adapters(model, tmp_path_factory):
    """Adapters of typed questions, and of label rows, by name."""
    folder = tmp_path_factory.mktemp("adapters")
    return {"typed": write_adapter(model, folder / "typed", typed_rows()),
            "plain": write_adapter(model, folder / "plain", labelled())}


@pytest.fixture(scope="module")
def running(model, adapters, tmp_path_factory):
    with daemon(model, tmp_path_factory.mktemp("state"), TrainConfig(**OPTIONS), Policy(nice=19, govern=False),
                start_process=ThreadWorker, learn_options="steps=1", log_prompts=True) as made:
        for name, folder in adapters.items():
            made.service.adapters.rename(made.service.adapters.add(f"ftjob-{name}", folder, name, PASSED).id, name)
        made.service.adapters.promote(made.service.adapters.of_job("ftjob-typed").id, "for the test")
        yield made


@pytest.fixture(scope="module")
def client(running):
    with httpx.Client(base_url=running.url, timeout=PATIENCE) as made:
        yield made


@pytest.fixture(scope="module")
def expected(model, adapters):
    """{name of a question: the probabilities of its labels}, by the engine without a daemon."""
    reader = Encoder(open_gguf(model), threads=1).adapter(adapters["typed"])

    def of(state=STATE):
        found = {}
        for name, key in KEYS.items():
            [one] = reader.classify([reader.encoder.read(prompt_of(key, state))])
            options = reader.learned.options_of(key)
            found[name] = {label: float(one.probabilities[options.first + i])
                           for i, label in enumerate(options.labels)}
        return found
    return of


def ask(client, state=STATE, questions=QUESTIONS, status=200, **fields):
    said = client.post(SYSTEM_ONE, json={"state": state, "questions": questions, **fields})
    assert said.status_code == status, said.text
    return said


def decide(client, given=STATE, questions=LISTED, status=200, **fields):
    said = client.post(DECISIONS, json={"input": given, "questions": questions, **fields})
    assert said.status_code == status, said.text
    return said


def sentence(said):
    return said.json()["error"]["message"]


def teach(client, said, question, status=200, **feedback):
    given = client.post("/v1/feedback", json={"completion_id": said.headers["x-request-id"], "question": question,
                                              **feedback})
    assert given.status_code == status, given.text
    return given.json()


# ---- answers ---------------------------------------------------------------------------------------------------------


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
    assert found["answers"]["kitchen"]["noul"] == pytest.approx(expected(json.dumps(state))["kitchen"]["true"], abs=1e-6)
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
        assert one["lamp"]["probabilities"] == pytest.approx(wanted["lamp"]["probabilities"], abs=1e-5)
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
            added = made.service.adapters.add(f"ftjob-{name}", write_adapter(model, tmp_path / name, each), name, PASSED)
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


# ---- wrong requests ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("body", "says"), [
    ({"questions": QUESTIONS}, "state is missing"), ({"state": STATE}, "questions is missing"),
    ({"state": None, "questions": QUESTIONS}, "the state is no text, object or list"),
    ({"state": [], "questions": QUESTIONS}, "the state is empty"),
    ({"state": STATE, "questions": {}}, "questions is no object of 1 to 64 questions"),
    ({"state": STATE, "questions": [BOAT]}, "questions is"),
    ({"state": STATE, "questions": {"q": {"type": "box", "instructions": "x"}}}, "questions.q.type is 'box'"),
    ({"state": STATE, "questions": {"q": {"type": "choice", "instructions": "x"}}}, "questions.q.criteria is no object"),
    ({"state": STATE, "questions": QUESTIONS, "model": 123}, "model is 123"),
    ({"state": STATE, "questions": QUESTIONS, "temperature": 1}, "there is no 'temperature'"),
    ({"state": STATE, "questions": QUESTIONS, "images": ["data:"]}, "images are given, and an encoder reads text alone"),
    ({"state": STATE, "questions": QUESTIONS, "assets": {"a": 1}}, "assets are given"),
    ({"state": [{"role": "user", "content": [{"type": "image_url"}]}], "questions": QUESTIONS},
     "messages[0] of the state is not text alone")])
def test_system_one_refuses_in_a_sentence(client, body, says):
    said = client.post(SYSTEM_ONE, json=body)
    assert said.status_code == 400, said.text
    assert says in sentence(said)
    assert said.json()["detail"] == sentence(said)


@pytest.mark.parametrize(("changed", "says"), [
    ({"questions": []}, "questions has 0 items; it must have 1 item or more"),
    ({"questions": [LISTED[1]] * 65}, "questions has 65 items; it must have 64 items or fewer"),
    ({"questions": [LISTED[0]] * 2}, "questions[1].name is 'lamp', as another's is"),
    ({"questions": [{**LISTED[1], "name": "x" * 101}]}, "has 101 characters; it must have 100 characters or fewer"),
    ({"questions": [{**LISTED[1], "type": "box"}]}, "questions.0.type is 'box'"),
    ({"questions": [{"type": "predicate"}]}, "questions.0.instructions is missing"),
    ({"questions": [{**LISTED[1], "instructions": " "}]}, "questions[0].instructions is empty"),
    ({"questions": [{**LISTED[1], "instructions": "x" * 2001}]}, "questions[0].instructions has 2001 characters"),
    ({"questions": [{**LISTED[1], "instructions": [{"type": "input_image", "image_url": "x"}]}]},
     "questions[0].instructions is not text alone"),
    ({"questions": [{**LISTED[0], "choices": [{"value": "a"}]}]}, "questions[0].choices has 1 options; give 2 to 255"),
    ({"questions": [{**LISTED[0], "choices": [{"value": "a"}, {"value": ""}]}]}, "choices has an empty option"),
    ({"questions": [{**LISTED[0], "choices": [{"value": "true"}, {"value": True}]}]}, "the same option twice"),
    ({"questions": [{**LISTED[0], "choices": [{"value": 1}, {"value": 2}]}]}, "questions.0.choices.0.value is 1"),
    ({"questions": [{**LISTED[0], "levels": LISTED[2]["levels"]}]}, "questions[0].levels is given, and the question is"),
    ({"questions": [{**LISTED[1], "choices": LISTED[0]["choices"]}]}, "questions[0].choices is given"),
    ({"questions": [{**LISTED[2], "levels": [{"label": "a"}]}]}, "questions[0].levels has 1 options; give 2 to 10"),
    ({"questions": [{**LISTED[2], "levels": [{"label": "a"}, {"label": " "}]}]}, "levels has an empty option"),
    ({"input": ""}, "the state is empty"), ({"input": []}, "the state is empty"),
    ({"input": ["x"]}, "input[0] is no object"), ({"input": [{"type": "item"}]}, "input[0] is no message, call or output"),
    ({"input": [{"role": "user", "content": [{"type": "input_image", "image_url": "x"}]}]}, "is not text alone"),
    ({"input": [{"type": "function_call_output", "output": 5}]}, "is not text alone"),
    ({"model": "gpt-6-luna"}, "there is no model 'gpt-6-luna'; there are enc, enc:latest")])
def test_decisions_refuses_in_a_sentence(client, changed, says):
    said = client.post(DECISIONS, json={"input": STATE, "questions": LISTED, **changed})
    assert said.status_code == (404 if "model" in changed else 400), said.text
    assert says in sentence(said)
    assert "detail" not in said.json()


@pytest.mark.parametrize("body", [b'{"state": "unterminated', b"", b"[]", b'{"state": ' + b"[" * 5000 + b'"x"' +
                                  b"]" * 5000 + b', "questions": {"q": {"type": "noul"}}}'])
@pytest.mark.parametrize("path", [SYSTEM_ONE, DECISIONS])
def test_a_body_that_is_no_request_is_refused(client, path, body):
    said = client.post(path, content=body, headers={"Content-Type": "application/json"})
    assert said.status_code == 400
    assert sentence(said)
    ask(client)


def test_more_questions_than_may_wait_are_refused_whole(client, running, monkeypatch):
    batcher = running.service.batcher
    monkeypatch.setattr(batcher, "parallel", 1)
    monkeypatch.setattr(batcher, "queue", 1)
    for said in (ask(client, status=429), decide(client, status=429)):
        assert said.headers["Retry-After"] == "1"
        assert said.json()["error"]["type"] == "rate_limit_error"
        assert "questions.q.criteria" in sentence(ask(client, questions={"q": {"type": "choice"}}, status=400))
    assert ask(client, questions={name: QUESTIONS[name] for name in ("lamp", "place")})
    assert (batcher.facts()["waiting"], batcher.facts()["working"]) == (0, 0)


def test_what_has_no_effect_is_taken(client):
    plain = ask(client).json()
    assert ask(client, keep_alive="5m", lang="en", chat_template_kwargs={}, cache_salt="x", images=[], assets=None,
               files=[]).json() == plain
    assert decide(client, prompt_cache_key="x", prompt_cache_options={"mode": "explicit"},
                  safety_identifier="me").json() == decide(client).json()


def test_a_model_that_writes_text_is_refused(tmp_path):
    with daemon(write_tiny(tmp_path / "tiny.gguf", formats="Q8_0"), tmp_path / "state") as writes, httpx.Client(
            base_url=writes.url, timeout=PATIENCE) as client:
        for said in (ask(client, status=400), decide(client, status=400)):
            assert sentence(said) == ("tiny writes text, and typed questions are answered by an encoder; start the "
                                      "daemon with one, such as edgetune daemon minilm")


# ---- feedback --------------------------------------------------------------------------------------------------------


def test_a_correction_is_recalled_at_once(client):
    """Of a question that was learned, of one that was not, and of both protocols; other questions keep their answers."""
    state = "turn on the light, recall it"
    before = ask(client, state)
    given = teach(client, before, "lamp", correction="stays")
    assert given["answer"] == "stays"
    after = ask(client, state)
    lamp = after.json()["answers"].pop("lamp")
    assert lamp == {"type": "choice", "choice": "stays", "confidence": 1.0,
                    "probabilities": {"goes on": 0.0, "goes off": 0.0, "stays": 1.0}}
    assert json.loads(after.headers["X-Edgetune-Recalled"]) == {"lamp": given["id"]}
    assert "lamp" in json.loads(after.headers["X-Edgetune-Sure"])
    assert {**after.json()["answers"], "lamp": 0} == {**before.json()["answers"], "lamp": 0}
    assert decide(client, state).json()["answers"][0]["choice"] == "stays"
    assert ask(client, state, model="typed").json()["answers"] == before.json()["answers"]  # answers for itself
    unknown = {"boat": BOAT, "sea": {"type": "score", "instructions": "How wet?", "criteria": ["dry", "wet"]}}
    refused = ask(client, state, unknown, status=422)
    teach(client, refused, "boat", correction="true")
    teach(client, refused, "sea", correction="1")
    found = ask(client, state, unknown).json()["answers"]
    assert found["boat"] == {"type": "noul", "noul": 1.0}
    assert (found["sea"]["score"], found["sea"]["confidence"]) == (1.0, 1.0)
    assert decide(client, state, [{"type": "predicate", "instructions": "Is it a boat?"}]).json()["answers"][0][
        "probability"] == 1.0
    ask(client, "turn on the light, recall it all", unknown, status=422)  # no like state is taken for it
    fewer = {"lamp": {**QUESTIONS["lamp"], "criteria": {"goes on": None, "goes off": None}}}
    assert "was corrected to 'stays', which is none of its options" in sentence(
        ask(client, state, fewer, status=422))


def test_options_that_are_true_and_false_are_answered_as_such(client):
    asked = [{"type": "choice", "name": "wet", "instructions": "Is it wet?", "choices": [{"value": False},
                                                                                        {"value": True}]}]
    refused = decide(client, questions=asked)
    teach(client, refused, "wet", correction="true")
    [found] = decide(client, questions=asked).json()["answers"]
    assert (found["choice"], found["probabilities"]) == (True, [{"value": False, "probability": 0.0},
                                                               {"value": True, "probability": 1.0}])


def test_thumbs_count_for_the_question_that_they_name(client):
    said = ask(client, "the light, thumbs")
    up = teach(client, said, "place", rating="up")
    assert (up["rating"], up["learns"]) == ("up", True)
    assert up["answer"] == str(np.argmax([*said.json()["answers"]["place"]["probabilities"].values()]))
    assert json.loads(up["question"] and client.get(f"/v1/feedback/{up['id']}").json()["row"]["messages"][0]["content"])[
        "type"] == "score"
    down = teach(client, said, "lamp", rating="down")
    assert (down["answer"], down["rejected"]) == (None, said.json()["answers"]["lamp"]["choice"])
    refused = ask(client, "the light, thumbs", {"boat": BOAT}, status=422)
    assert "empty" in teach(client, refused, "boat", status=400, rating="up")["error"]["message"]


def test_wrong_feedback_is_refused_in_a_sentence(client):
    said = ask(client, "the light, wrong")
    listed = decide(client, "the light, wrong")
    for answered, question, correction, status, says in (
            (said, "kitchen", "yes", 400, "which is no option; choose from false, true"),
            (said, "place", "far", 400, "which is no option; choose from 0, 1, 2"),
            (said, "boat", "true", 404, "is not among the last ones"),
            (listed, "kitchen", "true", 404, "is not among the last ones")):
        assert says in teach(client, answered, question, status, correction=correction)["error"]["message"]
    assert teach(client, listed, "1", correction="true")["answer"] == "true"  # the name of the second one
    whole = client.post("/v1/feedback", json={"completion_id": said.headers["x-request-id"], "correction": "stays"})
    assert whole.status_code == 404
    alone = client.post("/v1/feedback", json={"prompt": "x", "question": "lamp", "correction": "stays"})
    assert "question is 'lamp' without completion_id" in sentence(alone)
    edited = teach(client, said, "kitchen", correction="true")["id"]
    assert "which is no option" in sentence(client.patch(f"/v1/feedback/{edited}", json={"correction": "maybe"}))


def test_prompts_are_logged_where_that_is_asked(client, caplog):
    with caplog.at_level(logging.INFO, "edgetune.daemon"):
        said = ask(client, "the light, logged")
    lines = [record.getMessage() for record in caplog.records if said.headers["x-request-id"] in record.getMessage()]
    assert len(lines) == 3
    assert "the light, logged" in lines[0]


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


def test_an_answer_of_another_adapter_than_was_asked_is_not_read(running):
    """Its labels have other places."""
    question = TypedQuestion(SCORE, "How far is it?", ("0", "1", "2"), ("near", "there", "far"))
    asked = DecisionRequest(running.service, STATE, {"place": question})
    asked.adapter = "another"
    asked.reader = running.service.served.reader(running.service.adapters.serving)
    answer = running.service.ask(running_question(STATE))
    answer.text()
    with pytest.raises(TooMuchError, match="another adapter became active"):
        asked._read("place", question, answer)
    gone = SimpleNamespace(error=None, finish="cancelled")
    with pytest.raises(Exception, match="broken off because the daemon stops"):
        asked._read("place", question, gone)


def running_question(state):
    from edgetune.serving.question import Question
    return Question([{"role": "system", "content": KEYS["place"]}, {"role": "user", "content": state}])
