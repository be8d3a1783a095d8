"""Requests with typed questions to a daemon whose encoder learned those of typed_rows."""

from typing import Any

from typed_rows import QUESTIONS

SYSTEM_ONE, DECISIONS = "/v1/systemone", "/v1/decisions"
STATE = "turn on the light, the kitchen q"
PASSED = {"passed": True, "reason": "for a test"}
BOAT = {"type": "noul", "instructions": "Is it a boat?"}
LISTED: list[dict[str, Any]] = [
    {"type": "choice", "name": "lamp", "instructions": "What happens to the lamp?",
     "choices": [{"value": label, "description": text} if text else {"value": label}
                 for label, text in QUESTIONS["lamp"]["criteria"].items()]},
    {"type": "predicate", "instructions": "Is it the kitchen?"},
    {"type": "score", "name": "place", "instructions": [{"type": "input_text", "text": "How far is it?"}],
     "levels": [{"label": "near"}, {"label": "there", "description": "in between"}, {"label": "far"}]}]


def ask(client: Any, state: Any = STATE, questions: Any = QUESTIONS, status: int = 200, **fields: Any) -> Any:
    """The response to a request in TypeSafe's form."""
    said = client.post(SYSTEM_ONE, json={"state": state, "questions": questions, **fields})
    assert said.status_code == status, said.text
    return said


def decide(client: Any, given: Any = STATE, questions: Any = LISTED, status: int = 200, **fields: Any) -> Any:
    """The response to a request in OpenAI's form."""
    said = client.post(DECISIONS, json={"input": given, "questions": questions, **fields})
    assert said.status_code == status, said.text
    return said


def sentence(said: Any) -> str:
    return str(said.json()["error"]["message"])


def teach(client: Any, said: Any, question: str, status: int = 200, **feedback: Any) -> Any:
    """Gives feedback on one answer of a response."""
    given = client.post("/v1/feedback", json={"completion_id": said.headers["x-request-id"], "question": question,
                                              **feedback})
    assert given.status_code == status, given.text
    return given.json()
