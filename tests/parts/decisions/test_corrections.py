"""Feedback on the answers to typed questions: each is named by the id of its request and its question."""

import json
import logging

import numpy as np
from typed_asks import BOAT, ask, decide, sentence, teach
from typed_rows import KEYS, QUESTIONS


def test_a_correction_is_recalled_at_once(client):
    """Of a question that was learned, or not, and by both protocols; other questions keep their answers."""
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
    key = client.get(f"/v1/feedback/{up['id']}").json()["row"]["messages"][0]["content"]
    assert key == KEYS["place"]
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
