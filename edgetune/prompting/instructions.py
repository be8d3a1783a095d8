"""Instructions by rules: what the answers of rows have in common, said in a sentence."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from ..data.answer_schema import derive, is_closed
from ..data.rows import Row
from ..serving.prompt_file import turns_of

SHORT = 8  # words of an answer
MOST_LETTERS = 1500  # of an instruction


def answer_of(row: Row) -> str:
    """The last answer of a row; "" where it is no text."""
    content = turns_of(row)[-1].get("content")
    return content.strip() if isinstance(content, str) else ""


def by_rules(rows: Sequence[Row]) -> dict[str, str]:
    """{name: instruction} for what the answers of rows are: one of few, JSON, numbers, short texts."""
    answers = [answer_of(row) for row in rows]
    found: dict[str, str] = {}
    if is_closed(answers):
        labels = sorted(set(answers))
        found["labels"] = f"Answer with one of these, and nothing else: {', '.join(labels)}."
        found["labels as a list"] = "Choose the answer that fits the message best. Answers:\n" + "\n".join(labels)
    elif schema := derive(rows):
        found["JSON"] = "Answer with JSON in one line, and nothing else."
        found["JSON with its values"] = f"Answer with JSON in one line, and nothing else. {' '.join(_form(schema))}"
    elif all(_is_number(answer) for answer in answers):
        found["number"] = "Answer with a number, and nothing else."
    elif max(len(answer.split()) for answer in answers) <= SHORT:
        found["brief"] = f"Answer in at most {max(len(answer.split()) for answer in answers)} words."
    found["as before"] = "Answer the last message in the same form as the ones before."
    return {name: text for name, text in found.items() if len(text) <= MOST_LETTERS}


def _form(schema: Mapping[str, Any]) -> Iterator[str]:
    """A sentence for the keys, and one for each key of few values."""
    properties: Mapping[str, Mapping[str, Any]] = schema.get("properties", {})
    if properties:
        yield f"Its keys are {', '.join(map(json.dumps, properties))}."
    for key, inner in properties.items():
        if values := inner.get("enum"):
            yield f"{json.dumps(key)} is one of {', '.join(map(json.dumps, values))}."
        elif inner.get("properties"):
            yield f"Keys of {json.dumps(key)}: {', '.join(map(json.dumps, inner['properties']))}."


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True
