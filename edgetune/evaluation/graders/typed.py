"""Checks values of JSON against the declared types of a grader's fields, and describes both in words."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from types import NoneType, UnionType
from typing import Any, Literal, Union, get_args, get_origin

_WORDS = {str: "text", float: "a number", int: "a whole number", bool: "true or false", NoneType: "null",
          Mapping: "an object"}


def fits(value: Any, kind: Any) -> bool:
    """Checks a value against str, int, float, bool, None, Any, Mapping, tuple, Literal, or a union of such."""
    origin = get_origin(kind) or kind
    parts = get_args(kind)
    if kind is Any:
        return True
    if origin in (Union, UnionType):
        return any(fits(value, part) for part in parts)
    if origin is Literal:
        return any(value is part or (type(value) is type(part) and value == part) for part in parts)
    if origin is tuple:
        kinds = parts[:1] * len(value) if Ellipsis in parts and isinstance(value, list | tuple) else parts
        return isinstance(value, list | tuple) and len(value) == len(kinds) and all(map(fits, value, kinds))
    if origin is float:
        return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) < sys.float_info.max
    if origin is int:
        return isinstance(value, int) and not isinstance(value, bool)
    return isinstance(value, origin)


def made_of(kind: Any) -> str:
    """A type in words, as "give ..." has them."""
    origin = get_origin(kind) or kind
    parts = get_args(kind)
    if origin in (Union, UnionType):
        return " or ".join(made_of(part) for part in parts if part is not NoneType)
    if origin is Literal:
        return f"one of {', '.join(map(str, parts))}"
    if origin is tuple:
        return f"a list of {len(parts)} numbers" if Ellipsis not in parts else f"a list, each {made_of(parts[0])}"
    return _WORDS.get(origin, "a value")


def in_words(value: Any) -> str:
    """A value, mostly of JSON, cut."""
    if isinstance(value, Mapping):
        return "an object"
    if isinstance(value, list | tuple):
        return "a list" if len(value) != 1 else "a list of one item"
    if isinstance(value, bool):
        return "true" if value else "false"
    try:
        return "null" if value is None else f"{value!r:.60}"
    except Exception:  # a number of many digits, or a foreign type, that cannot be written
        return f"a {type(value).__name__}"
