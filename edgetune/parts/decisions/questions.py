"""GET /v1/decisions/questions: the typed questions that an adapter learned, and how well it answers each."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from fastapi import APIRouter, Query
from pydantic import Field

from ...daemon.api.completions import TheService
from ...daemon.api.errors import RESPONSES, JsonRoute
from ...daemon.api.security import needs
from ...daemon.api.shapes import Answer
from ...daemon.keys import KeyScope
from ...data.decisions import CHOICE, SCORE, TypedQuestion
from ...evaluation.question_scores import learned_questions, scores_of_facts
from ...serving.encoder_model import EncoderModel

ModelName = Annotated[str, Query(description="An adapter, or NAME:latest: the active adapter, as without.")]
router = APIRouter(route_class=JsonRoute, responses=RESPONSES)


class AloneDecided(Answer):
    """The questions that the adapter decides alone, so that at most a share of these answers is wrong."""

    error: float = Field(description="This share.")
    share: float = Field(description="The share of all questions that are decided so.")
    at_least: float = Field(description="Its lower bound, with a certainty of 95 %.")
    wrong: None = Field(description="null: these rows chose the threshold, and do not test it.")
    missing: str = Field(description="Why none is; empty: some are.")


class QuestionObject(Answer):
    """A question as a request asks it, and figures of answers about states that were not learned; null: none are known.
    """

    type: Literal["choice", "score", "noul"] = Field(description="One of options, a level, or yes and no.")
    instructions: str = Field(description="The question.")
    criteria: Any = Field(description="The options that were learned: an object of a choice, a list of a score.")
    rows: int | None = Field(None, description="The number of answers.")
    accuracy: float | None = Field(None, description="The share that is right.")
    brier: float | None = Field(None, description="The Brier score, from 0 to 2: 0 is best.")
    calibration_error: float | None = Field(None, description="The expected calibration error (ECE).")
    calibration_error_by_chance: float | None = Field(None, description="That of right probabilities, with as many "
                                                                        "answers.")
    decided_alone: list[AloneDecided] = Field([], description="What is decided alone at 5 and 1 % error.")


class QuestionList(Answer):
    """The questions that an adapter learned."""

    object: Literal["list"] = "list"
    model: str = Field(description="The adapter; the base if none is active.")
    learns: bool = Field(description="Whether the model is an encoder, which has a head for each question that it "
                                     "learned; another model answers any, and an answer says if it is not tuned.")
    data: list[QuestionObject] = Field(description="The questions.")


@router.get("/v1/decisions/questions", response_model=QuestionList)
@needs(KeyScope.ANSWER)
def list_questions(service: TheService, model: ModelName = "") -> Any:
    """Lists the typed questions that an adapter learned: the active one, or that of the name `model`."""
    served = service.served
    adapter = service.adapter_for(model)
    data: list[dict[str, Any]] = []
    if isinstance(served, EncoderModel) and adapter:
        reader = served.reader(adapter)
        scores = [score.to_json() for score in scores_of_facts(reader.learned, reader.known.calibrations)]
        questions = learned_questions(reader.learned)
        data = [{**_asked(question), **score}
                for question, score in zip(questions, scores or [{}] * len(questions), strict=True)]
    return {"model": adapter or service.name, "learns": isinstance(served, EncoderModel), "data": data}


def _asked(question: TypedQuestion) -> dict[str, Any]:
    """A question as a request has it."""
    criteria = {CHOICE: dict.fromkeys(question.labels), SCORE: [*question.texts]}.get(question.type)
    return {"type": question.type, "instructions": question.instructions, "criteria": criteria}
