"""POST /v1/decisions: typed questions in a list, answered in its order, as OpenAI's API has it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Annotated, Any, Literal

from fastapi import APIRouter, Request, Response
from pydantic import Field

from ...daemon.api.asking import note_ignored
from ...daemon.api.completions import TheService
from ...daemon.api.errors import RESPONSES, JsonRoute, about
from ...daemon.api.security import needs
from ...daemon.api.shapes import Answer, Body
from ...daemon.keys import KeyScope
from ...data import decisions
from ...data.decisions import (
    CHOICE,
    LONGEST,
    LONGEST_NAME,
    MOST_QUESTIONS,
    NO,
    NOUL,
    SCORE,
    YES,
    TypedQuestion,
)
from ...errors import DataError
from .asking import DecisionRequest
from .decided import Decided

router = APIRouter(route_class=JsonRoute, responses=RESPONSES)
NOT_USED = ("prompt_cache_key", "prompt_cache_options", "safety_identifier")


class DecisionOption(Body):
    """An option of a choice."""

    value: str | bool = Field(description="What is answered if it is chosen.")
    description: str | None = Field(None, description="What it means.")


class DecisionLevel(Body):
    """A level of a score."""

    label: str = Field(description="Its name.")
    description: str | None = Field(None, description="What it means. Not read: the label is a part of the question.")


class DecisionQuestion(Body):
    """A question about the input."""

    type: Literal["predicate", "choice", "score"] = Field(description="Yes or no, one of options, or a level.")
    instructions: str | list[Any] = Field(description="The question: text, or a list of text parts.")
    name: str | None = Field(None, max_length=LONGEST_NAME,
                             description="Its name in the answer, and for feedback [its number, from 0].")
    choices: list[DecisionOption] | None = Field(None, description="2 to 255 options of a choice.")
    levels: list[DecisionLevel] | None = Field(None, description="2 to 10 levels of a score, from the lowest.")


class DecisionsRequest(Body):
    """An input, and questions about it."""

    input: str | list[Any] = Field(description="What the questions are about: text, or messages.")
    questions: list[DecisionQuestion] = Field(min_length=1, max_length=MOST_QUESTIONS,
                                              description="1 to 64 questions, answered in this order.")
    model: str | None = Field(None, description="An adapter, or NAME:latest: the active adapter, as without.")
    prompt_cache_key: Any = Field(None, description="Not used.")
    prompt_cache_options: Any = Field(None, description="Not used.")
    safety_identifier: Any = Field(None, description="Not used, nor kept.")


class PredicateDecision(Answer):
    """The answer to a yes/no question."""

    type: Literal["predicate"]
    name: str | None = Field(description="The question's name.")
    probability: float = Field(description="The probability of yes.")


class OptionProbability(Answer):
    """The probability of an option."""

    value: str | bool = Field(description="The option.")
    probability: float = Field(description="Its probability.")


class ChoiceDecision(Answer):
    """The answer to a choice."""

    type: Literal["choice"]
    name: str | None = Field(description="The question's name.")
    choice: str | bool = Field(description="The most probable option.")
    confidence: float = Field(description="(max p - 1/n) / (1 - 1/n) of n options.")
    probabilities: list[OptionProbability] = Field(description="Of each option, in the order of the request.")


class LevelProbability(Answer):
    """The probability of a level."""

    label: str = Field(description="The level.")
    value: int = Field(description="Its number, from 0.")
    probability: float = Field(description="Its probability.")


class ScoreDecision(Answer):
    """The answer to a score."""

    type: Literal["score"]
    name: str | None = Field(description="The question's name.")
    score: float = Field(description="The expected level.")
    confidence: float = Field(description="1 less the mean distance to the likeliest level, as a share of that which "
                                          "equal probabilities have.")
    probabilities: list[LevelProbability] = Field(description="Of each level, in their order.")


class RefusedDecision(Answer):
    """No answer: the question was not learned. The header X-Edgetune-Refused has the reasons."""

    type: Literal["refusal"]
    name: str | None = Field(description="The question's name.")


DecisionAnswer = Annotated[PredicateDecision | ChoiceDecision | ScoreDecision | RefusedDecision,
                           Field(discriminator="type")]


class DecisionsUsage(Answer):
    """The tokens of a request."""

    input_tokens: int = Field(description="Tokens of the input.")
    input_tokens_details: dict[str, int] = Field(description="cached_tokens and cache_write_tokens: 0.")
    output_tokens: int = Field(description="0: nothing is written.")
    output_tokens_details: dict[str, int] = Field(description="reasoning_tokens: 0.")
    total_tokens: int = Field(description="Tokens of the input.")


class DecisionsResponse(Answer):
    """The answers in the order of the questions."""

    model: str = Field(description="The adapter that answered.")
    answers: list[DecisionAnswer] = Field(
        description="An answer for each question: {type, name, probability}; {type, name, choice, confidence, "
                    "probabilities}; {type, name, score, confidence, probabilities}; or a refusal, {type, name}.")
    usage: DecisionsUsage = Field(description="What it took.")


@router.post("/v1/decisions", response_model=DecisionsResponse)
@needs(KeyScope.ANSWER)
async def decide(body: DecisionsRequest, request: Request, response: Response, service: TheService) -> Any:
    """Answers typed questions about an input by an encoder that learned them, in one pass. One that was not learned is
    answered by a refusal; a model that writes text answers any, by letters, and X-Edgetune-Untuned names what it did
    not learn. Headers tell the id for feedback (x-request-id), which answers are sure (X-Edgetune-Sure) and
    why there are refusals (X-Edgetune-Refused).
    """
    note_ignored(request, [name for name in NOT_USED if getattr(body, name) is not None])
    with about("questions"):
        questions = _questions(body.questions)
    with about("input"):
        state = decisions.state_text(_input(body.input))
    asked = DecisionRequest(service, state, questions, body.model or "")
    await asked.answer(request)
    response.headers.update(asked.headers)
    if asked.unanswered:
        reasons = decisions.words("; ".join(str(error) for error in asked.unanswered.values()))
        response.headers["X-Edgetune-Refused"] = reasons.encode("ascii", "replace").decode()[:1000]
    tokens = asked.prompt_tokens
    return {"model": asked.adapter or service.name,
            "answers": [_answer(asked.answers.get(name), given)
                        for name, given in zip(questions, body.questions, strict=True)],
            "usage": {"input_tokens": tokens, "input_tokens_details": {"cached_tokens": 0, "cache_write_tokens": 0},
                      "output_tokens": 0, "output_tokens_details": {"reasoning_tokens": 0}, "total_tokens": tokens}}


def _questions(given: Sequence[DecisionQuestion]) -> dict[str, TypedQuestion]:
    """The questions by their names. Raises DataError for two of one name, and for options that are wrong."""
    found: dict[str, TypedQuestion] = {}
    for number, question in enumerate(given):
        name = question.name or str(number)
        if name in found:
            raise DataError(f"questions[{number}].name is {name!r:.80}, as another's is", "name each differently")
        found[name] = _question(f"questions[{number}]", question)
    return found


def _question(where: str, given: DecisionQuestion) -> TypedQuestion:
    asked = decisions.text_of_parts(f"{where}.instructions", given.instructions)
    instructions = decisions.words(decisions.asked_in(asked))
    if not instructions:
        raise DataError(f"{where}.instructions is empty", "write the question")
    if len(instructions) > LONGEST:
        raise DataError(f"{where}.instructions has {len(instructions)} characters, at most {LONGEST} are read",
                        "shorten it")
    for name, type in (("choices", CHOICE), ("levels", SCORE)):
        if given.type != type and getattr(given, name) is not None:
            raise DataError(f"{where}.{name} is given, and the question is a {given.type}", "leave it out")
    if given.type == "predicate":
        return TypedQuestion(NOUL, instructions, (NO, YES), ("", ""))
    if given.type == "score":
        levels = [decisions.words(level.label) for level in given.levels or ()]
        return decisions.question_of(f"{where}.levels", SCORE, instructions,
                                     [str(number) for number in range(len(levels))], levels)
    choices = given.choices or ()
    return decisions.question_of(f"{where}.choices", CHOICE, instructions,
                                 [decisions.label_of(choice.value) for choice in choices],
                                 [choice.description or "" for choice in choices])


def _input(given: str | list[Any]) -> Any:
    """The input as a state: calls of functions and their outputs are messages, too."""
    if isinstance(given, str):
        return given
    return [_message(f"input[{number}]", item) for number, item in enumerate(given)]


def _message(where: str, item: Any) -> dict[str, Any]:
    if not isinstance(item, Mapping):
        raise DataError(f"{where} is no object", 'write {"role": "user", "content": "..."}')
    if "role" in item and "content" in item:
        return {"role": str(item["role"]), "content": item["content"]}
    said = next((item[name] for name in ("output", "arguments", "input") if name in item), None)
    if "type" not in item or said is None:
        raise DataError(f"{where} is no message, call or output", 'write {"role": "user", "content": "..."}')
    return {"role": f"{item['type']} {item.get('name') or ''}".strip(), "content": said}


def _answer(found: Decided | None, given: DecisionQuestion) -> dict[str, Any]:
    if found is None:
        return {"type": "refusal", "name": given.name}
    head = {"type": given.type, "name": given.name}
    p: list[float] = found.p.tolist()
    if given.type == "predicate":
        return {**head, "probability": found.yes}
    if given.type == "score":
        return {**head, "score": found.score, "confidence": found.confidence_of_score,
                "probabilities": [{"label": level.label, "value": number, "probability": p[number]}
                                  for number, level in enumerate(given.levels or ())]}
    values = [choice.value for choice in given.choices or ()]
    best: str | bool = values[found.question.labels.index(found.label)]
    return {**head, "choice": best, "confidence": found.confidence,
            "probabilities": [{"value": value, "probability": share} for value, share in zip(values, p, strict=True)]}
