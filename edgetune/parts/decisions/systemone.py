"""POST /v1/systemone: typed questions by name, answered in one object, as TypeSafe's API and those like it have it."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Annotated, Any, Literal

from fastapi import APIRouter, Request, Response
from pydantic import Field
from starlette.exceptions import HTTPException

from ...daemon.api.asking import note_ignored
from ...daemon.api.completions import TheService
from ...daemon.api.errors import RESPONSES, JsonRoute, about
from ...daemon.api.security import needs
from ...daemon.api.shapes import Answer, Body, Error
from ...daemon.keys import KeyScope
from ...data import decisions
from ...data.decisions import CHOICE, NOUL
from ...errors import UnsupportedError
from .asking import DecisionRequest
from .decided import Decided

IMAGES = ("assets", "images", "files")
UNLEARNED = 422  # status, where nothing here can answer
router = APIRouter(route_class=JsonRoute, responses=RESPONSES)


class SystemOneRequest(Body):
    """A state, and questions about it by their names."""

    state: Any = Field(description="What the questions are about: text, JSON, or {\"messages\": [...]}.")
    questions: dict[str, Any] = Field(
        description="{name: {type, instructions, criteria}}, 1 to 64. type: choice, with criteria {option: its meaning "
                    "or null}; score, with criteria a list of levels; noul, yes or no.")
    model: str | None = Field(None, description="An adapter, or NAME:latest: the active adapter, as without.")
    assets: Any = Field(None, description="Not supported: text is read.")
    images: Any = Field(None, description="Not supported.")
    files: Any = Field(None, description="Not supported.")
    keep_alive: Any = Field(None, description="Not used.")
    lang: Any = Field(None, description="Not used.")
    chat_template_kwargs: Any = Field(None, description="Not used.")
    cache_salt: Any = Field(None, description="Not used.")


class NoulAnswer(Answer):
    """The answer to a yes/no question."""

    type: Literal["noul"]
    noul: float = Field(description="The probability of yes.")


class ChoiceAnswer(Answer):
    """The answer to a choice."""

    type: Literal["choice"]
    choice: str = Field(description="The most probable option.")
    confidence: float = Field(description="(max p - 1/n) / (1 - 1/n) of n options.")
    probabilities: dict[str, float] = Field(description="The probability of each option, calibrated on rows that were "
                                                        "not learned.")


class ScoreAnswer(Answer):
    """The answer to a score."""

    type: Literal["score"]
    score: float = Field(description="The expected level.")
    confidence: float = Field(description="1 less the mean distance to the likeliest level, as a share of that which "
                                          "equal probabilities have.")
    legend: dict[str, Any] = Field(description="The levels by their numbers.")
    probabilities: dict[str, float] = Field(description="The probability of each level.")


SystemOneAnswer = Annotated[NoulAnswer | ChoiceAnswer | ScoreAnswer, Field(discriminator="type")]


class SystemOneUsage(Answer):
    """The tokens of a request."""

    input_tokens: int = Field(description="Tokens of the state.")
    output_tokens: int = Field(description="0: nothing is written.")


class SystemOneResponse(Answer):
    """The answers in the order of the questions."""

    model: str = Field(description="The adapter that answered.")
    answers: dict[str, SystemOneAnswer] = Field(
        description="An answer for each question: {type, noul}; {type, choice, confidence, probabilities}; or "
                    "{type, score, confidence, legend, probabilities}.")
    usage: SystemOneUsage = Field(description="What it took.")


@router.post("/v1/systemone", response_model=SystemOneResponse,
             responses={UNLEARNED: {"model": Error, "description": "A question, or an option, was not learned."}})
@needs(KeyScope.ANSWER)
async def system_one(body: SystemOneRequest, request: Request, response: Response, service: TheService) -> Any:
    """Answers typed questions about a state by an encoder that learned them, in one pass. A question that was not
    learned is refused, 422, with the way to teach it. A model that writes text answers any, by letters, and
    X-Edgetune-Untuned names what it did not learn. Headers tell the id for feedback (x-typesafe-request-id), and which
    answers are sure (X-Edgetune-Sure).
    """
    for name in IMAGES:
        if getattr(body, name):
            raise UnsupportedError(f"{name} are given, and text alone is read", "describe them in the state")
    note_ignored(request, [name for name in ("keep_alive", "lang", "chat_template_kwargs", "cache_salt")
                           if getattr(body, name) is not None])
    with about("questions"):
        questions = decisions.read_questions(body.questions)
    with about("state"):
        state = decisions.state_text(body.state)
    asked = DecisionRequest(service, state, questions, body.model or "")
    await asked.answer(request)
    response.headers.update(asked.headers)
    if asked.unanswered:
        raise HTTPException(UNLEARNED, str(next(iter(asked.unanswered.values()))), asked.headers)
    return {"model": asked.adapter or service.name,
            "answers": {name: _answer(asked.answers[name], body.questions[name]) for name in questions},
            "usage": {"input_tokens": asked.prompt_tokens, "output_tokens": 0}}


def with_detail(body: dict[str, Any]) -> dict[str, Any]:
    """Returns an error with its sentence once more as `detail`, where some of these clients read it."""
    return {**body, "detail": body["error"]["message"]}


def _answer(found: Decided, given: Mapping[str, Any]) -> dict[str, Any]:
    type = found.question.type
    if type == NOUL:
        return {"type": type, "noul": found.yes}
    p: list[float] = found.p.tolist()
    if type == CHOICE:
        options = [*given["criteria"]]  # as the request writes them
        return {"type": type, "choice": options[int(found.p.argmax())], "confidence": found.confidence,
                "probabilities": dict(zip(options, p, strict=True))}
    levels = [text if isinstance(text, str | Mapping | list) else json.dumps(text) for text in given["criteria"]]
    return {"type": type, "score": found.score, "confidence": found.confidence_of_score,
            "legend": dict(zip(found.question.labels, levels, strict=True)),
            "probabilities": dict(zip(found.question.labels, p, strict=True))}
