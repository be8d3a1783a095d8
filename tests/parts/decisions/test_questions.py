"""GET /v1/decisions/questions: what an adapter learned, in the form in which it is asked, with its figures."""

import json

import pytest
from daemons import PATIENCE, daemon
from encoder_daemon import forms, labelled, write_adapter, write_tiny_encoder
from typed_rows import QUESTIONS, typed_rows

from edgetune.daemon.keys import KeyScope, add_key
from edgetune.evaluation.question_scores import scores_in

httpx = pytest.importorskip("httpx")
ROUTE = "/v1/decisions/questions"
PASSED = {"passed": True, "reason": "for a test"}


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return write_tiny_encoder(tmp_path_factory.mktemp("encoder") / "enc.gguf")


@pytest.fixture(scope="module")
def adapters(model, tmp_path_factory):
    folder = tmp_path_factory.mktemp("adapters")
    made = {"labels": labelled(), "json": forms(), "typed": typed_rows(70)}
    return {name: write_adapter(model, folder / name, rows) for name, rows in made.items()}


@pytest.fixture(scope="module")
def running(model, adapters, tmp_path_factory):
    """The adapter of typed questions is active."""
    with daemon(model, tmp_path_factory.mktemp("state") / "state") as made:
        kept = made.service.adapters
        for name, folder in adapters.items():
            kept.add(f"ftjob-{name}", folder, name, PASSED)
        kept.promote(kept.of_job("ftjob-typed").id, "for the test")
        yield made


def test_each_question_can_be_asked_as_it_is_listed(http, adapters):
    found = http.get(ROUTE).json()
    assert (found["object"], found["learns"], found["model"].split(":")[2]) == ("list", True, "typed")
    by_name = {question["instructions"]: question for question in found["data"]}
    assert {name: (each["type"], each["criteria"]) for name, each in by_name.items()} == {
        "What happens to the lamp?": ("choice", dict.fromkeys(QUESTIONS["lamp"]["criteria"])),
        "Is it the kitchen?": ("noul", None), "How far is it?": ("score", ["near", "there", "far"])}
    asked = {name: {key: each[key] for key in ("type", "instructions", "criteria")} for name, each in by_name.items()}
    answered = http.post("/v1/systemone", json={"state": "turn on the light", "questions": asked})
    assert answered.json()["answers"].keys() == asked.keys()
    for score in scores_in(adapters["typed"]):
        known = json.loads(json.dumps(score.to_json()))
        assert {name: by_name[known["instructions"]][name] for name in known} == known
        assert known["rows"] == 70


def test_another_adapter_is_named(http):
    [label] = http.get(ROUTE, params={"model": name_of(http, "labels")}).json()["data"]
    assert (label["type"], label["instructions"]) == ("choice", "answer")
    assert (label["criteria"], label["rows"]) == ({"lamp_off": None, "lamp_on": None}, 40)
    asked = {"it": {key: label[key] for key in ("type", "instructions", "criteria")}}
    answered = http.post("/v1/systemone", json={"state": "turn on the light", "questions": asked,
                                                "model": name_of(http, "labels")})
    assert answered.json()["answers"]["it"]["choice"] in label["criteria"]
    assert http.get(ROUTE, params={"model": name_of(http, "json")}).json()["data"] == []
    assert http.get(ROUTE, params={"model": "nobody"}).status_code == 404


def name_of(http, suffix):
    return next(each["id"] for each in http.get("/v1/adapters").json()["data"] if each["id"].split(":")[2] == suffix)


def test_a_key_that_may_ask_may_look(model, tmp_path):
    path = tmp_path / "keys"
    keys = {scope: add_key(path, scope.name, scope) for scope in (KeyScope.ANSWER, KeyScope.FEEDBACK)}
    with daemon(model, tmp_path / "state", key_file=str(path)) as made, \
            httpx.Client(base_url=made.url, timeout=PATIENCE) as http:
        assert http.get(ROUTE).status_code == 401
        for key in keys.values():
            found = http.get(ROUTE, headers={"Authorization": f"Bearer {key}"})
            assert (found.status_code, found.json()) == (
                200, {"object": "list", "model": "enc", "learns": True, "data": []})
