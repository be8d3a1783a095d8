"""Wrong requests with typed questions: each is refused in a sentence that names its field."""

import pytest
from typed_asks import BOAT, DECISIONS, LISTED, STATE, SYSTEM_ONE, ask, decide, sentence
from typed_rows import QUESTIONS


@pytest.mark.parametrize(("body", "says"), [
    ({"questions": QUESTIONS}, "state is missing"), ({"state": STATE}, "questions is missing"),
    ({"state": None, "questions": QUESTIONS}, "the state is no text, object or list"),
    ({"state": [], "questions": QUESTIONS}, "the state is empty"),
    ({"state": STATE, "questions": {}}, "questions is no object of 1 to 64 questions"),
    ({"state": STATE, "questions": [BOAT]}, "questions is"),
    ({"state": STATE, "questions": {"q": {"type": "box", "instructions": "x"}}}, "questions.q.type is 'box'"),
    ({"state": STATE, "questions": {"q": {"type": "choice", "instructions": "x"}}}, "questions.q.criteria is no"),
    ({"state": STATE, "questions": QUESTIONS, "model": 123}, "model is 123"),
    ({"state": STATE, "questions": QUESTIONS, "temperature": 1}, "there is no 'temperature'"),
    ({"state": STATE, "questions": QUESTIONS, "images": ["data:"]}, "images are given, and text alone is read"),
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
    ({"questions": [{**LISTED[0], "levels": LISTED[2]["levels"]}]}, "questions[0].levels is given, and the"),
    ({"questions": [{**LISTED[1], "choices": LISTED[0]["choices"]}]}, "questions[0].choices is given"),
    ({"questions": [{**LISTED[2], "levels": [{"label": "a"}]}]}, "questions[0].levels has 1 options; give 2 to 10"),
    ({"questions": [{**LISTED[2], "levels": [{"label": "a"}, {"label": " "}]}]}, "levels has an empty option"),
    ({"input": ""}, "the state is empty"), ({"input": []}, "the state is empty"),
    ({"input": ["x"]}, "input[0] is no object"), ({"input": [{"type": "x"}]}, "input[0] is no message, call or output"),
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
