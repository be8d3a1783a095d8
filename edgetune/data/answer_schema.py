"""The JSON schema that the answers of rows have in common: their keys, types and, where few occur, their values.

A row that comes several times says no more than once: feedback repeats each, and all of its values would seem to be
frequent ones. A value that is copied from the question, such as a name, is not chosen among those that occurred.
"""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Callable, Hashable, Iterable, Sequence
from graphlib import CycleError, TopologicalSorter
from hashlib import sha256
from typing import Any, TypeVar

from ..errors import DataError
from ..llamacpp.json_schema import ANY_ORDER
from .rows import Row, shape_of

LEAST = 8  # answers from which a schema is derived
MOST_VALUES = 48  # of an enumeration
MOST_KEYS = 64  # of an object: with more they are no names of fields
OFTEN = 3  # times that a value of an enumeration occurs, on average
ENOUGH = 10  # values of a field, before they are taken for all that there are
COPIED = 0.9  # of a field's values stand in their questions, where they are taken from these
TOLD = 0.5  # of its other values stand there too, where the question tells what to choose from
DEEPEST = 16
LARGEST = 10**15  # of whole numbers: what a grammar writes
ROOM = 4  # times the longest text, or list, that occurred

Value = TypeVar("Value", bound=Hashable)
Said = Sequence[tuple[str, Any]]  # values at the same place of all answers, each after the normal text of its question


def derive(rows: Iterable[Row]) -> dict[str, Any] | None:
    """A schema under which all answers are valid; None where not all are objects or lists of JSON, or they are few.

    A text is held to the values that occurred where all occurred twice at least, as another one is unlikely then by
    Good and Turing's estimate, and where they are not copied from the questions.
    """
    said = []
    for question, answer in _answers(_different(rows)):
        value = parsed(answer)
        if value is None or not _is_plain(value, DEEPEST):
            return None
        said.append((question, value))
    return _schema(said) if len(said) >= LEAST else None


def _different(rows: Iterable[Row]) -> Iterable[Row]:
    """Each row once."""
    seen = set()
    for row in rows:
        key = sha256(repr(row).encode(errors="surrogatepass")).digest()
        if key not in seen:
            seen.add(key)
            yield row


def _answers(rows: Iterable[Row]) -> Iterable[tuple[str, str]]:
    """All that is learned as an answer, after its question; what is no text of an answer is no JSON."""
    for row in rows:
        if isinstance(row, str) or _shape(row) not in ("messages", "prompt"):
            yield "", ""
        elif "completion" in row:
            yield _question(row.get("prompt", row.get("messages"))), str(row["completion"])
        else:
            for i, message in enumerate(row["messages"]):
                if message["role"] == "assistant":
                    content = message.get("content")
                    is_text = isinstance(content, str) and not message.get("tool_calls")
                    yield _question(row["messages"][:i]), content if is_text else ""


def _question(asked: Any) -> str:
    """The normal text of a prompt, or of messages but for the system's, which may name all that there is to choose."""
    if isinstance(asked, str):
        return normal(asked)
    return normal(" ".join(str(message.get("content")) for message in asked if message["role"] != "system"))


def _shape(row: Row) -> str:
    """"" for rows of an objective that has its own."""
    try:
        return shape_of(row)
    except DataError:
        return ""


def parsed(answer: str) -> Any:
    """An object or list of JSON; None for all else."""
    try:
        value = json.loads(answer)
    except (ValueError, RecursionError):
        return None
    return value if isinstance(value, dict | list) else None


def _is_plain(value: Any, depth: int) -> bool:
    """Whether a grammar can write it."""
    if isinstance(value, dict | list):
        inner = value.values() if isinstance(value, dict) else value
        return depth > 0 and all(_is_plain(each, depth - 1) for each in inner)
    return not isinstance(value, int | float) or abs(value) < LARGEST


def _schema(said: Said) -> dict[str, Any]:
    parts: list[dict[str, Any]] = []
    values = [value for _, value in said]
    if objects := _of(dict, said):
        parts.append(_object(objects))
    if lists := _of(list, said):
        parts.append(_array(lists))
    if texts := _of(str, said):
        parts.append(_text(texts))
    numbers = [value for value in values if isinstance(value, int | float) and not isinstance(value, bool)]
    if numbers:
        parts.append({"type": "integer" if all(isinstance(value, int) for value in numbers) else "number"})
    if any(isinstance(value, bool) for value in values):
        parts.append({"type": "boolean"})
    if any(value is None for value in values):
        parts.append({"type": "null"})
    return parts[0] if len(parts) == 1 else {"anyOf": parts}


def _of(kind: type, said: Said) -> Said:
    return [(question, value) for question, value in said if isinstance(value, kind)]


def _object(said: Said) -> dict[str, Any]:
    found: dict[str, list[tuple[str, Any]]] = {}
    for question, value in said:
        for key, inner in value.items():
            found.setdefault(key, []).append((question, inner))
    if len(found) > MOST_KEYS:
        return {"type": "object", "additionalProperties": _schema([each for inner in found.values() for each in inner])}
    order = _order([value for _, value in said])
    properties = {key: _schema(found[key]) for key in order or found}
    told = {"type": "object", "properties": properties, "additionalProperties": False}
    if order is None:
        return {**told, ANY_ORDER: True}
    return {**told, "required": [key for key in order if len(found[key]) == len(said)]}


def _order(values: Sequence[dict[str, Any]]) -> list[str] | None:
    """The keys' order, as all have it; None where some differ: another order than the learned one costs answers."""
    before: TopologicalSorter[str] = TopologicalSorter()
    for value in values:
        keys = list(value)
        for earlier, key in zip([None, *keys], keys, strict=False):
            before.add(key, *([] if earlier is None else [earlier]))
    try:
        return list(before.static_order())
    except CycleError:
        return None


def _array(said: Said) -> dict[str, Any]:
    items = [(question, item) for question, value in said for item in value]
    longest = max(len(value) for _, value in said)
    return {"type": "array", "items": _schema(items) if items else {}, "maxItems": ROOM * longest}


def _text(said: Sequence[tuple[str, str]]) -> dict[str, Any]:
    texts = [text for _, text in said]
    if is_closed(texts) and not is_copied(said, stands_in):
        return {"type": "string", "enum": sorted(set(texts))}
    return {"type": "string", "maxLength": max(ROOM * max(map(len, texts)), 64)}


def is_closed(values: Sequence[Hashable]) -> bool:
    """Whether no other value is expected: few occurred, each twice at least (Good and Turing), in enough answers."""
    counts = Counter(values)
    is_frequent = len(values) >= max(OFTEN * len(counts), ENOUGH)
    return is_frequent and len(counts) <= MOST_VALUES and min(counts.values()) > 1


def is_copied(said: Sequence[tuple[str, Value]], stands: Callable[[str, Value], bool]) -> bool:
    """Whether values, each after its question, are taken from there; stands: whether one is in a question. Where a
    question tells all that there is to choose from, it has the other ones too.
    """
    own = sum(stands(question, value) for question, value in said)
    if own < COPIED * len(said):
        return False
    some = list(dict.fromkeys(value for _, value in said))[:MOST_VALUES]
    others = [stands(question, other) for question, value in said for other in some if other != value]
    return sum(others) <= TOLD * len(others)


def normal(text: str) -> str:
    """Drops the differences of case and white space."""
    return " ".join(text.casefold().split())


def stands_in(source: str, value: str | float) -> bool:
    """Whether a value stands in a normal text, on the boundaries of words; a number in one of its notations."""
    if isinstance(value, str):
        words = normal(value)
        return bool(words) and re.search(rf"(?<!\w){re.escape(words)}(?!\w)", source) is not None
    notations = {str(value)}
    if isinstance(value, float) and value.is_integer():
        notations.add(str(int(value)))
    return any(re.search(rf"(?<![\w.]){re.escape(text)}(?![\w]|[.,]\d)", source) for text in notations)
