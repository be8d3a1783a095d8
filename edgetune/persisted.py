"""What was written to disk as JSON, read back by one rule, whichever edgetune wrote it: objects, and dataclasses.

A field that was renamed names its earlier names: field(metadata={"was": ("earlier",)}). A field that was added has a
default, which is what older files meant. Where the meaning changes, the version of the file (or database) rises.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import MISSING, fields
from functools import cache
from types import NoneType, UnionType
from typing import Any, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

from .errors import FormatError

T = TypeVar("T")
_types = cache(get_type_hints)


def from_json(kind: type[T], found: Any, source: str) -> T:
    """The dataclass `kind` from a JSON object. source: what holds it, for the error.

    A field that is missing takes its default. Raises FormatError for what is no object, and for the first field that
    `kind` does not have, that is missing and has no default, or whose value is of another type. A dataclass whose JSON
    is not that of its fields reads it by itself, with `read_json`.
    """
    if not isinstance(found, Mapping):
        raise FormatError(f"{source} is {found!r:.60}, no JSON object", "restore it from a copy")
    if (own := getattr(kind, "read_json", None)) is not None:
        read: T = own(found, source)
        return read
    return kind(**checked_fields(kind, found, source))


def checked_fields(kind: type[Any], found: Mapping[str, Any], source: str) -> dict[str, Any]:
    """{field: value} of a JSON object, as `from_json` checks them."""
    specs = {spec.name: spec for spec in fields(kind) if spec.init}
    names = {earlier: name for name, spec in specs.items() for earlier in (name, *spec.metadata.get("was", ()))}
    types = _types(kind)  # type: ignore[arg-type]
    values: dict[str, Any] = {}
    for written, value in found.items():
        if written not in names:
            raise FormatError(f"{source} has the field {written!r:.60}, which this edgetune does not know",
                              "use the edgetune that wrote it")
        name = names[written]
        if not _fits(value, types[name]):
            raise FormatError(f"{written} in {source} is {value!r:.60}, not of type {_spoken(types[name])}",
                              "restore it from a copy")
        values[name] = value
    for name, spec in specs.items():
        if name not in values and spec.default is MISSING and spec.default_factory is MISSING:
            raise FormatError(f"{source} lacks the field {name!r}", "restore it from a copy")
    return values


def _fits(value: Any, kind: Any) -> bool:
    """Whether a value of JSON can be read as a type; a whole number as a float, too. Items are not looked at."""
    origin = get_origin(kind)
    if kind is Any:
        return True
    if origin in (Union, UnionType):
        return any(_fits(value, part) for part in get_args(kind))
    if origin is Literal:
        return value in get_args(kind)
    if kind is float:
        return type(value) in (int, float)
    if kind in (int, bool):  # bool is a kind of int to Python, not here
        return type(value) is kind
    return isinstance(value, origin or kind)


def _spoken(kind: Any) -> str:
    if get_origin(kind) in (Union, UnionType):
        return " or ".join(_spoken(part) for part in get_args(kind))
    if get_origin(kind) is Literal:
        return " or ".join(map(repr, get_args(kind)))
    if kind is NoneType:
        return "null"
    return str((get_origin(kind) or kind).__name__)
