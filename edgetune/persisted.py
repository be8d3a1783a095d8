"""What was written to disk as JSON, read back by one rule, whichever edgetune wrote it: objects, and dataclasses.

A field that was renamed names its earlier names: field(metadata={"was": ("earlier",)}). A field that was added has a
default, which is what older files meant. Where the meaning changes, the version of the file (or database) rises.
Items of lists and objects are checked to any depth, and the error names the place: `answered[0]`, `base.name`.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import MISSING, fields, is_dataclass
from functools import cache
from types import NoneType, UnionType
from typing import Any, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

from .errors import FormatError

T = TypeVar("T")
COPY = "restore it from a copy"
SHOWN = 60  # characters of a value in an error
WORDS = {int: "a whole number", float: "a number", bool: "true or false", str: "text", NoneType: "null",
         list: "a list", tuple: "a list", dict: "an object", Mapping: "an object", Sequence: "a list"}
_types = cache(get_type_hints)


class _Misfit(Exception):
    """A value at a place that is not of the type `kind`."""

    def __init__(self, place: str, value: Any, kind: Any) -> None:
        self.place = place
        self.value = value
        self.kind = kind


def from_json(kind: type[T], found: Any, source: str) -> T:
    """The dataclass `kind` from a JSON object. source: what holds it, for the error.

    A field that is missing takes its default. Lists become tuples, and objects become dataclasses, if a field says so.
    Raises FormatError for what is no object, and for the first field that `kind` does not have, that is missing and has
    no default, or that has a value or an item of another type. A dataclass whose JSON is not that of its fields reads
    it by itself, with `read_json`.
    """
    if not isinstance(found, Mapping):
        raise FormatError(f"{source} is {found!r:.60}, no JSON object", COPY)
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
        try:
            values[names[written]] = _read(value, types[names[written]], written, source)
        except _Misfit as wrong:
            raise FormatError(f"{source}: {wrong.place} is {_shown(wrong.value)}, {_expected(wrong.kind)} is expected",
                              COPY) from None
    for name, spec in specs.items():
        if name not in values and spec.default is MISSING and spec.default_factory is MISSING:
            raise FormatError(f"{source} lacks the field {name!r}", COPY)
    return values


def _read(value: Any, kind: Any, place: str, source: str) -> Any:
    """A value of JSON as a type; a whole number is read as a float, too. Raises _Misfit, and FormatError of an object.
    """
    origin = get_origin(kind) or kind
    parts = get_args(kind)
    if kind is Any:
        return value
    if origin in (Union, UnionType):
        return _read_one_of(value, kind, place, source)
    if is_dataclass(kind) and not isinstance(value, kind):  # type: ignore[arg-type]
        if not isinstance(value, Mapping):
            raise _Misfit(place, value, kind)
        return from_json(kind, value, f"{place} in {source}")  # type: ignore[arg-type]
    if not _is_of(value, kind, origin):
        raise _Misfit(place, value, kind)
    if origin is tuple and parts:
        return tuple(_read_items(value, _kinds_of_items(value, kind, place), place, source))
    if origin in (list, Sequence) and parts:
        return _read_items(value, parts * len(value), place, source)
    if origin in (dict, Mapping) and parts:
        return {_read(key, parts[0], f"a key of {place}", source):
                _read(item, parts[1], f"{place}[{_shown(key)}]", source) for key, item in value.items()}
    return value


def _is_of(value: Any, kind: Any, origin: Any) -> bool:
    """Whether a value is of a type, without a look at its items."""
    if origin is Literal:
        return any(type(value) is type(one) and value == one for one in get_args(kind))
    if kind is float:
        return type(value) in (int, float)
    if kind in (int, bool):  # bool is a kind of int to Python, not here
        return type(value) is kind
    if origin in (tuple, Sequence):
        return isinstance(value, list | tuple)
    return isinstance(value, origin)


def _read_one_of(value: Any, kind: Any, place: str, source: str) -> Any:
    """A value as the first type of a union that it fits. Of those that it does not, the error tells the deepest."""
    deepest = _Misfit(place, value, kind)
    for part in get_args(kind):
        try:
            return _read(value, part, place, source)
        except _Misfit as wrong:
            deepest = max(deepest, wrong, key=lambda misfit: len(misfit.place))
    raise deepest


def _kinds_of_items(value: Sequence[Any], kind: Any, place: str) -> tuple[Any, ...]:
    """The types of a tuple's items."""
    parts = get_args(kind)
    if len(parts) == 2 and parts[1] is Ellipsis:
        return parts[:1] * len(value)
    if len(parts) != len(value):
        raise _Misfit(place, value, kind)
    return parts


def _read_items(value: Sequence[Any], kinds: Sequence[Any], place: str, source: str) -> list[Any]:
    return [_read(item, kind, f"{place}[{i}]", source) for i, (item, kind) in enumerate(zip(value, kinds, strict=True))]


def _shown(value: Any) -> str:
    """A value as an error shows it, cut where it is long."""
    if isinstance(value, str):
        return json.dumps(value[:SHOWN], ensure_ascii=False)
    if isinstance(value, int | float | NoneType):
        return f"{json.dumps(value):.{SHOWN}}"
    return "a list" if isinstance(value, list | tuple) else "an object"


def _expected(kind: Any) -> str:
    """What a type asks for, in words."""
    origin = get_origin(kind) or kind
    if origin in (Union, UnionType):
        return " or ".join(_expected(part) for part in get_args(kind))
    if origin is Literal:
        return " or ".join(map(_shown, get_args(kind)))
    if origin is tuple and get_args(kind) and Ellipsis not in get_args(kind):
        return f"a list of {len(get_args(kind))} items"
    return WORDS.get(origin, "an object")
