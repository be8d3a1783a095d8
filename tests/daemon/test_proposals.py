"""Corrections that people make in a chat are proposed, and learned only if somebody accepts them."""

import json

import httpx
import pytest
from daemons import PATIENCE, daemon
from services import open_service
from tiny import write_tiny

from edgetune.serving.question import Question

DAEMON = {"context": 512}
CHAT = "/v1/chat/completions"


def turns(*said):
    return [{"role": role, "content": text} for role, text in zip(("user", "assistant") * 9, said, strict=False)]


ASKED = turns("turn on the lamp", "The fan is on.", "No, I meant the lamp.")
STATED = turns("capital of Australia?", "Sydney.", "That is wrong, it is Canberra.")


@pytest.fixture(autouse=True)
def none_yet(running):
    running.service.proposals.clear()


def ask(http, messages, **options):
    answer = http.post(CHAT, json={"messages": messages, "max_tokens": 40, **options})
    assert answer.status_code == 200, answer.text
    return answer


def proposed(http):
    return http.get("/v1/proposals").json()["data"]


def test_a_correction_in_a_chat_is_proposed_and_not_learned(http):
    answer = ask(http, ASKED).json()["choices"][0]["message"]["content"]
    ask(http, STATED)
    found = {each["question"]: each for each in proposed(http)}
    lamp, capital = found["turn on the lamp"], found["capital of Australia?"]
    assert (lamp["answer"], lamp["remark"]) == ("The fan is on.", "No, I meant the lamp.")
    assert lamp["correction"] == answer.strip()
    assert capital["correction"] == "Canberra"
    assert http.get("/v1/device").json()["proposals"] == 2
    assert http.get("/v1/feedback").json()["data"] == []


@pytest.mark.parametrize("messages", [
    turns("turn on the lamp"), turns("turn on the lamp", "The lamp is on.", "Thanks!"),
    turns("Do we need milk?", "Shall I buy some?", "No, bread."), STATED[1:], turns("a", "", "That is wrong.")])
def test_other_chats_propose_nothing(http, messages):
    ask(http, messages)
    assert proposed(http) == []


def test_the_same_remark_is_proposed_once_also_in_a_stream(http):
    ask(http, STATED)
    assert ask(http, STATED, stream=True).read()
    assert [each["correction"] for each in proposed(http)] == ["Canberra"]


def test_an_answer_that_is_corrected_again_is_no_longer_proposed(http):
    ask(http, ASKED)
    ask(http, [*ASKED, *turns("-", "The radio is on.")[1:], {"role": "user", "content": "Wrong. It is the lamp."}])
    assert [(each["question"], each["correction"]) for each in proposed(http)] == [("No, I meant the lamp.",
                                                                                    "the lamp")]


def test_an_accepted_one_is_feedback(http):
    ask(http, STATED)
    (proposal,) = proposed(http)
    found = http.post(f"/v1/proposals/{proposal['id']}/accept")
    assert found.status_code == 200, found.text
    feedback = found.json()
    assert (feedback["question"], feedback["answer"], feedback["rejected"]) == ("capital of Australia?", "Canberra",
                                                                                "Sydney.")
    assert proposed(http) == []
    assert [each["id"] for each in http.get("/v1/feedback").json()["data"]] == [feedback["id"]]
    again = ask(http, STATED[:1]).json()["choices"][0]["message"]["content"]
    assert again == "Canberra"  # recalled, as any correction
    assert http.delete(f"/v1/feedback/{feedback['id']}").status_code == 200


def test_one_is_accepted_with_other_words(http):
    ask(http, ASKED)
    (proposal,) = proposed(http)
    refused = http.post(f"/v1/proposals/{proposal['id']}/accept", json={"correction": " "})
    assert refused.status_code == 400
    found = http.post(f"/v1/proposals/{proposal['id']}/accept", json={"correction": "The lamp is on."}).json()
    assert found["answer"] == "The lamp is on."
    http.delete(f"/v1/feedback/{found['id']}")


def test_they_are_dismissed(http):
    ask(http, ASKED)
    ask(http, STATED)
    first = proposed(http)[0]["id"]
    assert http.delete(f"/v1/proposals/{first}").json() == {"id": first, "object": "proposal", "deleted": True}
    assert http.delete(f"/v1/proposals/{first}").status_code == 404
    assert http.post(f"/v1/proposals/{first}/accept").status_code == 404
    assert http.delete("/v1/proposals").json()["count"] == 1
    assert proposed(http) == []


def test_none_is_proposed_if_the_operator_says_so(tmp_path):
    model = write_tiny(tmp_path / "tiny.gguf", formats="Q8_0", n_context=256)
    with daemon(model, tmp_path / "state", context=256, propose=False) as made, httpx.Client(
            base_url=made.url, timeout=PATIENCE) as http:
        ask(http, STATED)
        assert proposed(http) == []


def test_json_is_proposed_where_the_answer_was_json(running):
    """A remark in words is no answer of that form; what followed it may be."""
    question = Question(messages=turns("lamp on", '{"lamp":"hall"}', "It should be the kitchen"))
    proposal = running.service.proposals.see(question, ' {"lamp":"kitchen"}')
    assert (proposal.correction, proposal.follows) == ('{"lamp":"kitchen"}', True)
    assert json.loads(proposal.correction)


@pytest.mark.parametrize("is_cleared", [True, False])
def test_a_damaged_one_is_named_and_deleted_or_replaced_by_the_same_remark(tmp_path, is_cleared):
    with open_service(tmp_path) as service:
        proposals = service.proposals
        proposals.stores = True
        question = Question(messages=STATED)
        assert proposals.see(question, "x")
        with service.store.write() as db:
            db.execute("UPDATE proposals SET row = '{}'")
        assert proposals.list() == []
        assert any("a row of proposals" in reason for reason in service.health()["reasons"])
        made = [] if is_cleared else [proposals.see(question, "x")]
        if is_cleared:
            proposals.clear()
        assert proposals.list() == made
        assert service.health()["status"] == "ok"
