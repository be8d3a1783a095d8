"""Checks answers, and lists their errors: JSON is compared as JSON, all else as text."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

NOT_JSON = object()  # what `parse_json` makes of a text that is none
_LONGEST = 40  # characters of a value that is shown
NUMBER = "-0123456789"  # what a number of JSON may begin with


def is_json(text: str) -> bool:
    return parse_json(text) is not NOT_JSON


def same(expected: str, answer: str) -> bool:
    """Returns whether an answer is right: equal as JSON if the expected one is, else as stripped text.

    JSON's key order, spacing and number notation are free (1 is 1.0). Its types are not (true is not 1).
    """
    value = parse_json(expected)
    if value is NOT_JSON:
        return expected.strip() == answer.strip()
    return equal(value, parse_json(answer))


def may_become(expected: str, begun: str) -> bool:
    """Returns whether an answer with this beginning may still be right. Where the expected one is JSON, only the first
    character says so.
    """
    begun = begun.strip()
    value = parse_json(expected)
    if value is NOT_JSON:
        return expected.strip().startswith(begun)
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    return begun[:1] in (NUMBER if is_number else json.dumps(value)[0])


def differences(expected: str, answer: str) -> list[str]:
    """Lists the errors of an answer where JSON is expected: missing, extra or different keys and items, by their path.
    Empty where the answer is right, or the expected one is no JSON.
    """
    wanted = parse_json(expected)
    if wanted is NOT_JSON:
        return []
    given = parse_json(answer)
    return ["not JSON"] if given is NOT_JSON else list(_differences(wanted, given, ""))


def _differences(wanted: Any, given: Any, path: str) -> Iterator[str]:
    if isinstance(wanted, dict) and isinstance(given, dict):
        yield from _parts(wanted, given, {key: f"{path}.{key}" if path else key for key in (*wanted, *given)})
    elif isinstance(wanted, list) and isinstance(given, list):
        most = max(len(wanted), len(given))
        yield from _parts(dict(enumerate(wanted)), dict(enumerate(given)), {i: f"{path}[{i}]" for i in range(most)})
    elif not equal(wanted, given):
        yield f"different: {path + ' is ' if path else ''}{_short(given)}, not {_short(wanted)}"


def _parts(wanted: dict[Any, Any], given: dict[Any, Any], paths: dict[Any, str]) -> Iterator[str]:
    """Lists the differences between two objects or lists; paths: of their parts."""
    for key, path in paths.items():
        if key not in given:
            yield f"missing: {path}"
        elif key not in wanted:
            yield f"extra: {path}"
        else:
            yield from _differences(wanted[key], given[key], path)


def _short(value: Any) -> str:
    text = json.dumps(value, ensure_ascii=False)
    return text if len(text) <= _LONGEST else text[:_LONGEST - 3] + "..."


def equal(a: Any, b: Any) -> bool:
    """Returns whether two values of JSON are equal, by the rules of `same`."""
    if isinstance(a, bool) or isinstance(b, bool):
        return a is b
    if isinstance(a, dict) and isinstance(b, dict):
        return a.keys() == b.keys() and all(equal(a[key], b[key]) for key in a)
    if isinstance(a, list) and isinstance(b, list):
        return len(a) == len(b) and all(map(equal, a, b))
    return bool(a == b)


def parse_json(text: str) -> Any:
    """The JSON value of a text, NOT_JSON if it is none (a model's answer may be anything, also nested without end)."""
    try:
        return json.loads(text, parse_constant=_refuse)
    except (ValueError, RecursionError):
        return NOT_JSON


def _refuse(constant: str) -> Any:
    raise ValueError(f"{constant} is not JSON")
