"""Numbers of JSON within bounds, as rules of GBNF."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

from ..errors import UsageError

DIGITS = 15  # what a float64 holds without rounding
INTEGER = f'"-"? ("0" | [1-9] [0-9]{{0,{DIGITS - 1}}})'
FRACTION = f'("." [0-9]{{1,{DIGITS}}})?'
NUMBER = f'{INTEGER} {FRACTION} ([eE] [-+]? [0-9]{{1,2}})?'
POSITIVE = '"." [0-9]{0,5} [1-9]'  # a fraction that is not 0, nor is rounded to 1
LARGEST = 10**DIGITS - 1
SHOWN_PARTS = 3  # of a long place, at its beginning and at its end
SHOWN_CHARACTERS = 40  # of each


def integer(schema: Mapping[str, Any], place: SchemaPath) -> str:
    """Whole numbers between minimum and maximum."""
    low, high = _bounds(schema, place)
    first = math.ceil(low) + (math.ceil(low) == schema.get("exclusiveMinimum"))
    last = math.floor(high) - (math.floor(high) == schema.get("exclusiveMaximum"))
    if first > last:
        raise UsageError(f"the schema{place} has bounds between which no number is",
                         "let minimum be less than maximum")
    return between(first, last)


def number(schema: Mapping[str, Any], place: SchemaPath) -> str:
    """Numbers between minimum and maximum, without exponents: whole ones, and those after whole ones that fit."""
    low, high = _bounds(schema, place)
    parts = [integer(schema, place)] if _has_whole(schema, place) else []
    for sign, least, most in (("", low, high), ('"-" ', -high, -low)):
        first = max(math.ceil(least), 0)  # n.xxx is more than least for all n from here
        last = math.floor(most) - 1  # to here it is less than most
        if first <= last:
            parts.append(f"{sign}({between(first, last)}) {POSITIVE}")
    if not parts:
        raise UsageError(f"the schema{place} has bounds without a whole number between them",
                         "let them be whole numbers, at least one apart")
    return " | ".join(parts)


def between(low: int, high: int) -> str:
    if low < 0:
        negative = f'"-" ({between(max(-high, 1), -low)})'
        return f"{negative} | {between(0, high)}" if high >= 0 else negative
    return " | ".join(_digits(str(a), str(b)) for a, b in _blocks(low, high))


def _blocks(low: int, high: int) -> Iterator[tuple[int, int]]:
    """Ranges of equally long numbers, of which some first digits are equal, one differs, and the rest are any."""
    while low <= high:
        size = 1
        while low % (size * 10) == 0 and low + size * 10 - 1 <= high and (low or size == 1) and low != 0:
            size *= 10
        end = low
        while (end + size - 1) <= high and (end // size) // 10 == (low // size) // 10:
            end += size
        yield low, end - 1
        low = end


def _digits(low: str, high: str) -> str:
    """Numbers of a block."""
    same = next((i for i in range(len(low)) if low[i] != high[i]), len(low))
    parts = [f'"{low[:same]}"'] if same else []
    if same < len(low):
        parts.append(f"[{low[same]}-{high[same]}]")
        if left := len(low) - same - 1:
            parts.append(f"[0-9]{{{left}}}")
    return " ".join(parts)


def _bounds(schema: Mapping[str, Any], place: SchemaPath) -> tuple[float, float]:
    for word in ("minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum"):
        value = schema.get(word, 0)
        if isinstance(value, bool) or not isinstance(value, int | float) or not abs(value) <= LARGEST:
            raise UsageError(f"the schema{place} has {word} {value!r:.60}", f"write a number up to {LARGEST}")
    low = max((schema[word] for word in ("minimum", "exclusiveMinimum") if word in schema), default=-LARGEST)
    high = min((schema[word] for word in ("maximum", "exclusiveMaximum") if word in schema), default=LARGEST)
    return low, high


def _has_whole(schema: Mapping[str, Any], place: SchemaPath) -> bool:
    try:
        integer(schema, place)
    except UsageError:
        return False
    return True


@dataclass(frozen=True)
class SchemaPath:
    """Keys from the root of a schema; owner: whose schema it is, the name of a function. Put it after "the schema"."""

    owner: str = ""
    parts: tuple[str, ...] = ()

    def __truediv__(self, part: str | int) -> SchemaPath:
        return replace(self, parts=(*self.parts, str(part)))

    def __str__(self) -> str:
        of = f" of {self.owner:.{SHOWN_CHARACTERS}}" if self.owner else ""
        if not self.parts:
            return of
        names = [f"{part:.{SHOWN_CHARACTERS}}" for part in self.parts]
        if len(names) > 2 * SHOWN_PARTS:
            names[SHOWN_PARTS:-SHOWN_PARTS] = ["..."]
        return f"{of} at /{'/'.join(names)}"
