"""What a chat template may compute, counted: it is a program of whoever made the model file.

    steps    one for each call, filter, test, comparison, and for each turn of a loop (more where its body is long);
             one for each KiB that is read
    memory   bytes of all that is made, freed again or not

What would pass the rest of it is refused before it is made. Where operations pay: `sandbox`.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Mapping
from contextvars import ContextVar
from itertools import chain
from typing import Any, NamedTuple

STEPS = 100_000  # and
STEPS_AN_ELEMENT = 20  # for each message, name, text or number that a template is given
MEMORY = 16 << 20  # bytes, and
GROWTH = 64  # times the size of what a template is given
BITS = 256  # of a whole number
WIDTH = 10_000  # characters, elements or digits that an argument may ask for
ELEMENT = 64  # bytes that an object takes at least
CONTAINERS = (list, tuple, dict, set, frozenset)
# The width of a number in a format is what makes its text long; one that is an argument is not known beforehand.
_WIDE_PERCENT = re.compile(r"[%).][-+ #0]*(\d{5}|\*)")


class Size(NamedTuple):
    """The size of a value with all that it holds: how many values, bytes as text, how deep they are nested."""

    elements: int
    text: int
    depth: int


class Excess(Exception):
    """A template asks for more than it may have; the message ends "the template ..."."""


class Meter:
    """What is left to one rendering of a template that is given `variables`. `with meter:` makes it the current one."""

    def __init__(self, variables: Mapping[str, Any]) -> None:
        self.steps = STEPS
        self.memory = MEMORY
        self._given = variables  # kept alive, for its parts are known by their addresses
        self._known: dict[int, Size] = {}  # of its parts, once one is needed

    def __enter__(self) -> Meter:
        self._token = current.set(self)
        return self

    def __exit__(self, *_error: object) -> None:
        current.reset(self._token)

    def pay(self, steps: int, memory: int = 0) -> None:
        self.steps -= steps
        self.memory -= memory
        if self.steps < 0 or self.memory < 0:
            self._know_given()
            if self.steps < 0:
                raise Excess("takes too many steps for a conversation of this size")
            if self.memory < 0:
                raise Excess("writes too much for a conversation of this size")

    def room(self, size: int) -> None:
        """Refuse to make what would take more bytes than are left."""
        if size > self.memory:
            self._know_given()
            if size > self.memory:
                raise Excess(f"would write {size:,} bytes where {self.memory:,} are left to it")

    def read(self, value: Any, deep: bool = True) -> int:
        """Pay for reading a value; its size as text."""
        if isinstance(value, str):
            self.pay(1 + (len(value) >> 10))
            return len(value)
        if not isinstance(value, CONTAINERS):
            self.pay(1)
            return ELEMENT
        if deep:
            return self.measure(value).text
        self.pay(1 + (len(value) >> 6))
        return len(value)

    def made(self, value: Any) -> Any:
        """Pay for a value that was made; gives it back."""
        size = ELEMENT
        if isinstance(value, str):
            size += len(value)
        elif isinstance(value, CONTAINERS):
            size += ELEMENT * len(value)
        elif type(value) is int and value.bit_length() > BITS:
            raise Excess(f"computes a whole number of {value.bit_length()} bits, the limit is {BITS}")
        self.pay(1 + (size >> 10), size)
        return value

    def measure(self, value: Any) -> Size:
        """The size of nested lists and dicts; what is held twice counts twice, as it is written twice."""
        self._know_given()
        return self._measure(value)

    def _know_given(self) -> None:
        """Measure, once, what the template was given, and allow it more where that is large."""
        if self._known:
            return
        self._known[id(self._given)] = Size(0, 0, 0)
        steps = self.steps
        memory = self.memory
        self.steps = sys.maxsize
        self.memory = sys.maxsize
        for value in self._given.values():
            size = self._measure(value, know=True)
            steps += STEPS_AN_ELEMENT * size.elements
            memory += GROWTH * size.text
        self.steps = steps
        self.memory = memory

    def _measure(self, value: Any, know: bool = False) -> Size:
        if not isinstance(value, CONTAINERS):
            return Size(1, self.read(value), 0)
        if id(value) in self._known:
            found = self._known[id(value)]
            self.pay(1 + (found.elements >> 6))
            return found
        parts = chain.from_iterable(value.items()) if isinstance(value, dict) else value
        elements = 1
        text = 2
        depth = 0
        for part in parts:
            size = self._measure(part, know)
            elements += size.elements
            text += size.text + 4
            depth = max(depth, size.depth + 1)
        found = Size(elements, text, depth)
        if know:
            self._known[id(value)] = found
        return found


current: ContextVar[Meter] = ContextVar("meter")


# ---- what operations would make -------------------------------------------------------------------------------------


def check_binop(meter: Meter, operator: str, left: Any, right: Any) -> None:
    """Raise Excess where the result would be too large."""
    if operator == "%" and isinstance(left, str):
        check_percent(meter, left, [right])
    elif operator == "+" and isinstance(left, (str, list, tuple)):
        meter.room(length(left) + length(right))
    elif operator == "*" and (is_sequence(left) or is_sequence(right)):
        times, value = (left, right) if is_sequence(right) else (right, left)
        if isinstance(times, int):
            meter.room(length(value) * times)
    elif isinstance(left, int) and isinstance(right, int):
        bits = left.bit_length() * right if operator == "**" else left.bit_length() + right.bit_length()
        if bits > 2 * BITS:
            raise Excess(f"computes a whole number of some {bits:,.0f} bits, the limit is {BITS}"[:200])


def is_sequence(value: Any) -> bool:
    return isinstance(value, (str, list, tuple))


def length(value: Any) -> int:
    """Bytes, roughly."""
    if isinstance(value, str):
        return len(value)
    return ELEMENT * len(value) if isinstance(value, (list, tuple)) else ELEMENT


def check_percent(meter: Meter, text: str, args: list[Any]) -> None:
    if found := _WIDE_PERCENT.search(text):
        raise too_wide(found[0])
    check_format(meter, text, text.count("%"), args)


def check_format(meter: Meter, text: str, fields: int, args: list[Any]) -> None:
    meter.room(len(text) + fields * (sum(meter.read(arg) for arg in args) + WIDTH))


def too_wide(spec: str) -> Excess:
    return Excess(f"formats with {spec!r:.40}, whose width is not below {WIDTH:,} or not written out")


def size_after(method: str, text: str, args: tuple[Any, ...], read: int) -> int:
    """Characters that a method's result can have; `read`: those of the text and its arguments."""
    if method in ("center", "ljust", "rjust", "zfill") and args and isinstance(args[0], int):
        return max(len(text), args[0])
    if method == "replace" and len(args) > 1:
        return size_replaced(text, *args[:2])
    if method == "join" and args and isinstance(args[0], (list, tuple, dict, set, frozenset)):
        return read + len(text) * len(args[0])
    if method == "join" and args and isinstance(args[0], str):
        return (len(text) + 1) * len(args[0])
    return read


def size_replaced(text: Any, old: Any, new: Any) -> int:
    if not (isinstance(text, str) and isinstance(old, str) and isinstance(new, str)):
        return ELEMENT
    return len(text) + text.count(old) * len(new)
