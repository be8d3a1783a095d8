"""A teacher labels states: it answers the typed questions about each by a route for decisions, or in a chat.

Its probabilities become the row's `gold`. A row names its teacher, so that nobody takes it for a person's.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict
from pathlib import Path
from typing import Any

from ...daemon.endpoint import Endpoint
from ...data import decisions
from ...data.decisions import CHOICE, EXPECTED, GOLD, NOUL, QUESTIONS, SCORE, STATE, TEACHER, TypedQuestion, words
from ...data.question import digest
from ...errors import DataError
from ...evaluation.collected import Entry, PromptCounts, RefusedByTeacher, journalled

Row = Mapping[str, Any]
Ask = Callable[[Endpoint, Row, Mapping[str, TypedQuestion]], Mapping[str, Any]]
"""From a row and its questions to answers by their names: {label: probability}, or a label."""
AS_JSON = "Answer as one JSON object, with the name of each question and one of its answers."


def label(rows: Sequence[Any], server: Endpoint, route: str, out: Path, threads: int = 4,
          on_progress: Callable[[str, int, int], None] = lambda *_: None,
          should_stop: Callable[[], bool] = lambda: False) -> PromptCounts:
    """Writes the rows with a teacher's labels into the new file `out`. A row that the teacher refuses, or answers in
    another form, is left out. Raises DataError for a row with answers, and otherwise as `journalled`.
    """
    questions = [questions_of(row) for row in rows]

    def one(number: int) -> Entry:
        try:
            found = _labelled(rows[number], ROUTES[route](server, rows[number], questions[number]), server.model)
        except (RefusedByTeacher, DataError, AttributeError, IndexError, KeyError, TypeError, ValueError):
            return number, {"row": None, "counts": asdict(PromptCounts(prompts=1, refused=1))}
        return number, {"row": found, "counts": asdict(PromptCounts(prompts=1, kept=1, answers=1))}

    def answered(left: Sequence[int], pool: ThreadPoolExecutor, look: Callable[[], None]) -> Iterator[Entry]:
        def asking(number: int) -> Entry:
            look()
            return one(number)

        return pool.map(asking, left)

    return journalled(out, digest([[*rows], route, server.model]), len(rows), answered, threads, on_progress,
                      should_stop)


def questions_of(row: Row) -> dict[str, TypedQuestion]:
    """The questions of a row to be labelled. Raises DataError for a row with answers, or without a state."""
    if EXPECTED in row or GOLD in row:
        raise DataError("a row has answers already", "give only states that are to be labelled")
    if STATE not in row or QUESTIONS not in row:
        raise DataError(f"a row has the keys {', '.join(row):.100}", 'write {"state": ..., "questions": {...}}')
    decisions.state_text(row[STATE])
    return decisions.read_questions(row[QUESTIONS])


def _labelled(row: Row, answers: Mapping[str, Any], teacher: str) -> dict[str, Any]:
    """The row with its answers. Raises DataError for one that is no option, and if there is none."""
    found = {STATE: row[STATE], QUESTIONS: row[QUESTIONS], GOLD: dict(answers), TEACHER: teacher}
    decisions.conversation(found)
    return found


# ---- the routes ------------------------------------------------------------------------------------------------------


def by_systemone(server: Endpoint, row: Row, questions: Mapping[str, TypedQuestion]) -> dict[str, Any]:
    """Asks by POST /v1/systemone."""
    answers = server.post("/systemone", {"state": row[STATE], "questions": row[QUESTIONS]})["answers"]
    return {name: answers[name]["noul"] if question.type == NOUL else answers[name]["probabilities"]
            for name, question in questions.items()}


def by_decisions(server: Endpoint, row: Row, questions: Mapping[str, TypedQuestion]) -> dict[str, Any]:
    """Asks by POST /v1/decisions; what it refuses has no answer."""
    asked = [_as_decision(name, question) for name, question in questions.items()]
    found = server.post("/decisions", {"input": decisions.state_text(row[STATE]), "questions": asked})["answers"]
    answers: dict[str, Any] = {}
    for name, answer in zip(questions, found, strict=True):
        if answer["type"] == "predicate":
            answers[name] = answer["probability"]
        elif answer["type"] != "refusal":
            answers[name] = {decisions.label_of(one["value"]): one["probability"] for one in answer["probabilities"]}
    return answers


def _as_decision(name: str, question: TypedQuestion) -> dict[str, Any]:
    asked: dict[str, Any] = {"name": name, "instructions": question.instructions}
    if question.type == NOUL:
        return {**asked, "type": "predicate"}
    if question.type == SCORE:
        return {**asked, "type": "score", "levels": [{"label": text} for text in question.texts]}
    return {**asked, "type": "choice", "choices": [{"value": value, "description": text or None} for value, text in
                                                   zip(question.labels, question.texts, strict=True)]}


def by_chat(server: Endpoint, row: Row, questions: Mapping[str, TypedQuestion]) -> dict[str, Any]:
    """Asks in a chat whose answer is held to JSON; a server that holds to none is read as far as it answers so."""
    lines = [f"{name}: {question.instructions} ({_offered(question)})" for name, question in questions.items()]
    message = "\n".join([decisions.state_text(row[STATE]), "", *lines, "", AS_JSON])
    schema = {"type": "object", "properties": {name: {"enum": _values(question)} for name, question in
                                               questions.items()}, "required": [*questions],
              "additionalProperties": False}
    held = {"type": "json_schema", "json_schema": {"name": "answers", "strict": True, "schema": schema}}
    said = server.answer([{"role": "user", "content": message}], temperature=0, response_format=held).text
    answers = json.loads(said[said.index("{"):said.rindex("}") + 1])
    return {name: {words(decisions.label_of(answers[name])): 1.0} for name in questions}


def _values(question: TypedQuestion) -> list[Any]:
    """The answers as JSON has them."""
    return [*question.labels] if question.type == CHOICE else [json.loads(label) for label in question.labels]


def _offered(question: TypedQuestion) -> str:
    pairs = zip(question.labels, question.texts, strict=True)
    return "; ".join(f"{label}: {text}" if text else label for label, text in pairs)


ROUTES: dict[str, Ask] = {"systemone": by_systemone, "decisions": by_decisions, "chat": by_chat}
