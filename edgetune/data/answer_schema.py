"""The JSON schema that the answers of rows have in common: their keys, types and, where few occur, their values.

A row that comes several times says no more than once: a lesson repeats each, and all of its values would seem to be
frequent ones.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Hashable, Iterable, Sequence
from graphlib import CycleError, TopologicalSorter
from hashlib import sha256
from typing import Any

from ..errors import DataError
from ..llamacpp.json_schema import ANY_ORDER
from .rows import Row, shape_of

LEAST = 8  # answers from which a schema is derived
MOST_VALUES = 48  # of an enumeration
MOST_KEYS = 64  # of an object: with more they are no names of fields
OFTEN = 3  # times that a value of an enumeration occurs, on average
ENOUGH = 10  # values of a field, before they are taken for all that there are
DEEPEST = 16
LARGEST = 10**15  # of whole numbers: what a grammar writes
ROOM = 4  # times the longest text, or list, that occurred


def derive(rows: Iterable[Row]) -> dict[str, Any] | None:
    """A schema under which all answers are valid; None where not all are objects or lists of JSON, or they are few.

    A text is held to the values that occurred where all occurred twice at least: by Good and Turing's estimate another
    one is unlikely then.
    """
    values = []
    for answer in _answers(_different(rows)):
        value = _parsed(answer)
        if not isinstance(value, dict | list) or not _is_plain(value, DEEPEST):
            return None
        values.append(value)
    return _schema(values) if len(values) >= LEAST else None


def _different(rows: Iterable[Row]) -> Iterable[Row]:
    """Each row once."""
    seen = set()
    for row in rows:
        key = sha256(repr(row).encode(errors="surrogatepass")).digest()
        if key not in seen:
            seen.add(key)
            yield row


def _answers(rows: Iterable[Row]) -> Iterable[str]:
    """All that is learned as an answer; what is no text of an answer is no JSON."""
    for row in rows:
        if isinstance(row, str) or _shape(row) not in ("messages", "prompt"):
            yield ""
        elif "completion" in row:
            yield str(row["completion"])
        else:
            for message in [message for message in row["messages"] if message["role"] == "assistant"]:
                content = message.get("content")
                yield content if isinstance(content, str) and not message.get("tool_calls") else ""


def _shape(row: Row) -> str:
    """"" for rows of an objective that has its own."""
    try:
        return shape_of(row)
    except DataError:
        return ""


def _parsed(text: str) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return None


def _is_plain(value: Any, depth: int) -> bool:
    """Whether a grammar can write it."""
    if isinstance(value, dict | list):
        inner = value.values() if isinstance(value, dict) else value
        return depth > 0 and all(_is_plain(each, depth - 1) for each in inner)
    return not isinstance(value, int | float) or abs(value) < LARGEST


def _schema(values: Sequence[Any]) -> dict[str, Any]:
    """Of values at the same place of all answers."""
    parts: list[dict[str, Any]] = []
    if objects := [value for value in values if isinstance(value, dict)]:
        parts.append(_object(objects))
    if lists := [value for value in values if isinstance(value, list)]:
        parts.append(_array(lists))
    if texts := [value for value in values if isinstance(value, str)]:
        parts.append(_text(texts))
    numbers = [value for value in values if isinstance(value, int | float) and not isinstance(value, bool)]
    if numbers:
        parts.append({"type": "integer" if all(isinstance(value, int) for value in numbers) else "number"})
    if any(isinstance(value, bool) for value in values):
        parts.append({"type": "boolean"})
    if any(value is None for value in values):
        parts.append({"type": "null"})
    return parts[0] if len(parts) == 1 else {"anyOf": parts}


def _object(values: Sequence[dict[str, Any]]) -> dict[str, Any]:
    found: dict[str, list[Any]] = {}
    for value in values:
        for key, inner in value.items():
            found.setdefault(key, []).append(inner)
    if len(found) > MOST_KEYS:
        return {"type": "object", "additionalProperties": _schema([inner for each in found.values() for inner in each])}
    order = _order(values)
    properties = {key: _schema(found[key]) for key in order or found}
    told = {"type": "object", "properties": properties, "additionalProperties": False}
    if order is None:
        return {**told, ANY_ORDER: True}
    return {**told, "required": [key for key in order if len(found[key]) == len(values)]}


def _order(values: Sequence[dict[str, Any]]) -> list[str] | None:
    """Of keys, as all have it; None where some differ: to be held to another order than one has learned costs answers.
    """
    before: TopologicalSorter[str] = TopologicalSorter()
    for value in values:
        keys = list(value)
        for earlier, key in zip([None, *keys], keys, strict=False):
            before.add(key, *([] if earlier is None else [earlier]))
    try:
        return list(before.static_order())
    except CycleError:
        return None


def _array(values: Sequence[list[Any]]) -> dict[str, Any]:
    items = [item for value in values for item in value]
    longest = max(map(len, values))
    return {"type": "array", "items": _schema(items) if items else {}, "maxItems": ROOM * longest}


def _text(values: Sequence[str]) -> dict[str, Any]:
    if is_closed(values):
        return {"type": "string", "enum": sorted(set(values))}
    return {"type": "string", "maxLength": max(ROOM * max(map(len, values)), 64)}


def is_closed(values: Sequence[Hashable]) -> bool:
    """Whether no other value is to be expected: few occurred, all of them twice at least (Good and Turing), in enough
    answers.
    """
    counts = Counter(values)
    is_frequent = len(values) >= max(OFTEN * len(counts), ENOUGH)
    return is_frequent and len(counts) <= MOST_VALUES and min(counts.values()) > 1
