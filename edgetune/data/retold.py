"""A row told again with other values: one that stands in its question and in its answer is replaced in both.

Few rows have few values, and a model that learned them takes those for what decides. What a row says of its structure
holds for any value of the same field, so a row with others is as right as itself (slot substitution, Louvan and
Magnini 2020, arXiv 2009.03695).
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from typing import Any

import numpy as np

from .answer_schema import is_copied, parsed
from .words import normal, stands_in

OPEN = 0.5  # of a field's values differ, where others are to be expected
FEWEST = 3  # different values, before a field has others
REPLACED = 0.7  # of the values that could be
STYLES: list[dict[str, Any]] = [  # in which JSON is written
    {"ensure_ascii": is_ascii, "indent": indent, "separators": separators}
    for is_ascii, indent, separators in product((True, False), (None, 2, 4), (None, (",", ":")))]

Place = tuple[str | None, ...]  # the keys to a value in an answer; None for an item of a list


@dataclass(frozen=True)
class Value:
    """said: as in a question; answered: as in its answer, which may differ in case and white space."""

    said: str
    answered: str


Values = Mapping[Place, Sequence[Value]]  # that can take one another's place


def values_of(rows: Iterable[tuple[str, str]]) -> dict[Place, list[Value]]:
    """The values of those fields that are copied and open, each once; rows: (question, answer). Answers that are no
    JSON have none.
    """
    found: dict[Place, list[tuple[str, str]]] = {}
    for question, answer in rows:
        for place, text in texts_in(parsed(answer)):
            found.setdefault(place, []).append((question, text))
    return {place: list(dict.fromkeys(value for question, text in said if (value := value_in(question, text))))
            for place, said in found.items() if _is_open(said)}


def _is_open(said: Sequence[tuple[str, str]]) -> bool:
    """said: (a question, a value in its answer)."""
    different = len({text for _, text in said})
    normals = [(normal(question), text) for question, text in said]
    return different >= max(FEWEST, OPEN * len(said)) and is_copied(normals, stands_in)


def texts_in(value: Any, place: Place = ()) -> Iterator[tuple[Place, str]]:
    """Each text within a value of JSON, with its place."""
    if isinstance(value, dict):
        for key, inner in value.items():
            yield from texts_in(inner, (*place, key))
    elif isinstance(value, list):
        for inner in value:
            yield from texts_in(inner, (*place, None))
    elif isinstance(value, str):
        yield place, value


def value_in(question: str, text: str) -> Value | None:
    """An answer's text as a value, if it stands in the question once and has no white space around it."""
    found = _occurrences(question, text)
    return Value(found[0][0], text) if len(found) == 1 and text == text.strip() else None


def told_again(question: str, answer: str, values: Values, rng: np.random.Generator) -> tuple[str, str]:
    """(question, answer) with other values; as they are where there are none, or where the answer's JSON is written in
    a way that is not known.
    """
    value = parsed(answer)
    style = next((style for style in STYLES if json.dumps(value, **style) == answer), None)
    if style is None:
        return question, answer
    asked = question

    def other(place: Place, text: str) -> str:
        nonlocal asked
        found = _occurrences(asked, text)
        others = values.get(place, ())
        if len(found) != 1 or not others or rng.random() >= REPLACED:
            return text
        chosen = others[int(rng.integers(len(others)))]
        if stands_in(normal(asked), chosen.said):
            return text
        asked = asked[:found[0].start()] + chosen.said + asked[found[0].end():]
        return chosen.answered

    told = _replaced(value, (), other)
    before, after = normal(question), normal(asked)
    lost = any(stands_in(before, old) and not stands_in(after, new)
               for (_, old), (_, new) in zip(texts_in(value), texts_in(told), strict=True))
    return (question, answer) if lost else (asked, json.dumps(told, **style))


def _replaced(value: Any, place: Place, other: Callable[[Place, str], str]) -> Any:
    """With each text exchanged for other(place, text)."""
    if isinstance(value, dict):
        return {key: _replaced(inner, (*place, key), other) for key, inner in value.items()}
    if isinstance(value, list):
        return [_replaced(inner, (*place, None), other) for inner in value]
    return other(place, value) if isinstance(value, str) else value


def _occurrences(question: str, text: str) -> list[re.Match[str]]:
    """Of a text as whole words, whatever its case."""
    words = r"\s+".join(map(re.escape, text.split()))
    return list(re.finditer(rf"(?<!\w){words}(?!\w)", question, re.IGNORECASE)) if words else []
