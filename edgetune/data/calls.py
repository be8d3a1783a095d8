"""Calls of tools that are learned: each must be one that the row's `tools` take.

Names and arguments that have changed since a row was written would teach calls that nothing answers. A call is a
`tool_calls` of a message, or written in an answer's text: between <tool_call> tags, or as its only JSON.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from ..errors import DataError
from ..llamacpp.tokenizer import read_calls

TAGGED = re.compile(r"<tool_call>\s*(\{.*?)\s*</tool_call>", re.DOTALL)
ARGUMENTS = ("arguments", "parameters")
LEFT_OUT = "an answer of weight 0 is not learned"
NAMED = 12  # tools, arguments or values that a sentence names
SHOWN = 60  # characters of a value in a sentence
TYPES: Mapping[str, type | tuple[type, ...]] = {
    "object": dict, "array": list, "string": str, "boolean": bool, "null": type(None), "integer": int,
    "number": (int, float)}


class CallError(DataError):
    """A call that its row's tools do not take."""


def check_calls(place: str, message: Mapping[str, Any], tools: Sequence[Mapping[str, Any]] | None) -> None:
    """Raises CallError for a call that is not of `tools`, or has other arguments than its tool takes.

    place: of the message, for the error. Without tools nothing is known of its calls.
    """
    if tools is None or message["role"] != "assistant" or not message.get("weight", 1):
        return
    known = {function["name"]: function for tool in tools
             if isinstance(function := tool.get("function", tool), Mapping) and isinstance(function.get("name"), str)}
    for name, arguments in calls_in(message, place):
        if name not in known:
            raise CallError(f"{place} calls {name!r:.{SHOWN}}, which is none of the row's tools ({_some(known)})",
                            f"name one of them, or add it to tools; {LEFT_OUT}")
        for problem in _object(arguments, known[name].get("parameters"), ""):
            raise CallError(f"{place} calls {name} {problem}", f"mend the call, or the tool in tools; {LEFT_OUT}")


def calls_in(message: Mapping[str, Any], place: str) -> Iterator[tuple[str, Any]]:
    """The calls of an assistant's message: (name, arguments). place: of the message, for the error. Raises CallError
    for a call between tags that is no JSON.
    """
    for call in read_calls(message.get("tool_calls") or []):
        function = call.get("function", call)
        yield function["name"], function.get("arguments") or {}
    yield from _written(place, message.get("content"))


def _written(place: str, content: Any) -> Iterator[tuple[str, Any]]:
    """The calls in a text. Raises CallError for tags without JSON between them."""
    text = content.strip() if isinstance(content, str) else ""
    tagged = TAGGED.findall(text)
    for each in tagged or [text] * text.startswith(("{", "[")):
        try:
            found = json.loads(each)
        except (ValueError, RecursionError):
            if tagged:
                raise CallError(f"{place} has a call that is not JSON ({each!r:.{SHOWN}})",
                                'write {"name": ..., "arguments": {...}} between the tags') from None
            return
        for call in found if isinstance(found, list) else [found]:
            key = next((key for key in ARGUMENTS if isinstance(call, dict) and isinstance(call.get(key), dict)), "")
            if key and isinstance(call.get("name"), str):
                yield call["name"], call[key]


def _object(value: Any, schema: Any, inside: str) -> Iterator[str]:
    """What is wrong with arguments, or with an object among them. Without `properties` a schema takes any."""
    if not isinstance(schema, Mapping) or not isinstance(schema.get("properties"), Mapping):
        return
    takes = schema["properties"]
    if not isinstance(value, Mapping):
        yield f"with {value!r:.{SHOWN}} where an object belongs"
        return
    for key in schema.get("required") or ():
        if key not in value:
            yield f"without {inside}{key}, which it requires (it takes {_some(takes)})"
    for key, each in value.items():
        if key in takes:
            yield from _value(each, takes[key], f"{inside}{key}")
        elif not schema.get("additionalProperties"):
            yield f"with {inside}{key} {each!r:.{SHOWN}}, which it does not take (it takes {_some(takes)})"


def _value(value: Any, schema: Any, key: str) -> Iterator[str]:
    if not isinstance(schema, Mapping):
        return
    for name in ("anyOf", "oneOf"):
        choices = schema.get(name) or ()
        if choices and all(any(_value(value, choice, key)) for choice in choices):
            yield f"with {key} {value!r:.{SHOWN}}, which is none of what {key} takes"
    for part in schema.get("allOf") or ():
        yield from _value(value, part, key)
    kinds = schema.get("type")
    named = [kinds] if isinstance(kinds, str) else list(kinds or ())
    if named and not any(_is_of(value, kind) for kind in named) and not (value is None and schema.get("nullable")):
        yield f"with {key} {value!r:.{SHOWN}}, which must be of type {' or '.join(map(str, named))}"
        return
    if isinstance(schema.get("enum"), list) and value not in schema["enum"]:
        yield f"with {key} {value!r:.{SHOWN}}, which must be one of {_some(schema['enum'])}"
    if isinstance(value, list):
        for each in value:
            yield from _value(each, schema.get("items"), key)
    elif isinstance(value, dict):
        yield from _object(value, schema, f"{key}.")


def _is_of(value: Any, kind: Any) -> bool:
    """Whether a value has a type of JSON schema; True for a type that JSON schema does not have."""
    if isinstance(value, bool):
        return kind == "boolean" or kind not in TYPES
    if kind == "integer" and isinstance(value, float):
        return value.is_integer()
    return kind not in TYPES or isinstance(value, TYPES[kind])


def _some(values: Any) -> str:
    shown = [str(value) for value in values][:NAMED]
    return ", ".join([*shown, *["..."] * (len(values) > NAMED)]) or "none"
