"""A regular expression as a rule of GBNF, for strings of JSON: the part of ECMA-262 that schemas use.

Characters that JSON writes with a backslash (quotes, backslashes, controls) come only where an expression names them.
"""

from __future__ import annotations

import json
from collections.abc import Sequence

from ..errors import UsageError

Ranges = list[tuple[int, int]]  # of code points, both ends included

PLAIN: Ranges = [(0x20, 0x21), (0x23, 0x5B), (0x5D, 0x7E), (0x80, 0xD7FF), (0xE000, 0x10FFFF)]
DIGITS: Ranges = [(48, 57)]
WORD: Ranges = [(48, 57), (65, 90), (95, 95), (97, 122)]
SPACE: Ranges = [(32, 32)]
CLASSES = {"d": DIGITS, "w": WORD, "s": SPACE}
CONTROLS = {"t": 9, "n": 10, "r": 13, "f": 12}
DEEPEST = 32
REPEATED = 1900


def rule_of(pattern: str, char: str) -> str:
    """A rule's body for strings with the pattern. char: the rule of any character. Raises UsageError beyond GBNF."""
    reader = _Reader(pattern)
    body, start, end = reader.whole()
    return f"{'' if start else f'{char}* '}({body}){'' if end else f' {char}*'}"


def text(characters: str) -> str:
    shown = []
    for c in characters:
        if c in '"\\':
            shown.append("\\" + c)
        elif c.isprintable():
            shown.append(c)
        else:
            shown.append(f"\\U{ord(c):08X}")
    return '"' + "".join(shown) + '"'


def set_of(ranges: Ranges) -> str:
    return "[" + "".join(_code(low) + (f"-{_code(high)}" if high > low else "") for low, high in ranges) + "]"


def _code(code: int) -> str:
    return chr(code) if chr(code).isascii() and chr(code).isalnum() else f"\\U{code:08X}"


class _Reader:
    """A pattern, read from its start to its end."""

    def __init__(self, pattern: str) -> None:
        self.pattern = pattern
        self.place = 0
        self.depth = 0

    def whole(self) -> tuple[str, bool, bool]:
        """(body, whether it is held to the start, to the end)"""
        start = self._take("^")
        body = self._alternatives()
        end = self._take("$")
        if self.place < len(self.pattern):
            raise self._cannot()
        if (start or end) and "|" in self.pattern and not self._is_one_group():
            raise self._cannot("put the alternatives into parentheses")
        return body, start, end

    def _is_one_group(self) -> bool:
        """Whether each | is within parentheses or brackets, so that ^ and $ hold for all alternatives."""
        depth = 0
        escaped = False
        for c in self.pattern:
            if escaped:
                escaped = False
                continue
            escaped = c == "\\"
            depth += (c in "([") - (c in ")]")
            if c == "|" and depth == 0:
                return False
        return True

    def _take(self, what: str) -> bool:
        found = self.pattern.startswith(what, self.place)
        self.place += len(what) * found
        return found

    def _peek(self) -> str:
        return self.pattern[self.place : self.place + 1]

    def _next(self) -> str:
        if not self._peek():
            raise self._cannot()
        self.place += 1
        return self.pattern[self.place - 1]

    def _cannot(self, hint: str = "use characters, sets, groups, | and repetitions") -> UsageError:
        return UsageError(f"the pattern {self.pattern!r:.200} has what a grammar cannot follow at {self.place}", hint)

    def _alternatives(self) -> str:
        self.depth += 1
        if self.depth > DEEPEST:
            raise self._cannot("use fewer groups within one another")
        parts = [self._sequence()]
        while self._take("|"):
            parts.append(self._sequence())
        self.depth -= 1
        return " | ".join(parts)

    def _sequence(self) -> str:
        parts = []
        while self._peek() not in ("", "|", ")", "$"):
            parts.append(self._atom() + self._times())
        return " ".join(parts) or '""'

    def _atom(self) -> str:
        c = self._next()
        if c == "(":
            if self._peek() == "?" and not self._take("?:"):
                raise self._cannot()
            inner = self._alternatives()
            if not self._take(")"):
                raise self._cannot()
            return f"({inner})"
        if c == "[":
            return self._written(*self._set())
        if c == ".":
            return self._written(PLAIN, ())
        if c == "\\":
            return self._written(*self._escape())
        if c in "^$*+?{}":
            raise self._cannot()
        return self._written(*_sorted_out([(ord(c), ord(c))]))

    def _times(self) -> str:
        c = self._peek()
        found = ""
        if c and c in "*+?":
            found = self._next()
        elif c == "{":
            end = self.pattern.find("}", self.place)
            numbers = self.pattern[self.place + 1 : end].split(",") if end >= 0 else []
            if len(numbers) not in (1, 2) or not all(n.isdecimal() for n in numbers if n) or not numbers[0] or any(
                    int(n) > REPEATED for n in numbers if n):
                raise self._cannot(f"repeat at most {REPEATED} times")
            found = self.pattern[self.place : end + 1]
            self.place = end + 1
        if found:
            self._take("?")  # as few as possible: for what may be found this is the same
        return found

    def _escape(self) -> tuple[Ranges, Sequence[int]]:
        """(plain characters, those that JSON escapes) that an escape stands for."""
        c = self._next()
        if c in CLASSES:
            return CLASSES[c], ()
        if c.lower() in CLASSES:
            return _without(PLAIN, CLASSES[c.lower()]), ()
        if c in CONTROLS:
            return [], (CONTROLS[c],)
        if c in "ux":
            digits = self.pattern[self.place : self.place + (4 if c == "u" else 2)]
            self.place += len(digits)
            try:
                return _sorted_out([(int(digits, 16),) * 2])
            except ValueError:
                raise self._cannot() from None
        if c.isalnum():
            raise self._cannot()
        return _sorted_out([(ord(c), ord(c))])

    def _set(self) -> tuple[Ranges, Sequence[int]]:
        negated = self._take("^")
        ranges: Ranges = []
        escaped: list[int] = []
        while not self._take("]"):
            low = self._member(ranges, escaped)
            if low is not None and self._peek() == "-" and self.pattern[self.place + 1 : self.place + 2] != "]":
                self._next()
                high = self._member(ranges, escaped)
                if high is None or high < low:
                    raise self._cannot()
                ranges.append((low, high))
            elif low is not None:
                ranges.append((low, low))
        if negated:
            return _without(PLAIN, ranges), ()
        plain, more = _sorted_out(ranges)
        return plain, (*escaped, *more)

    def _member(self, ranges: Ranges, escaped: list[int]) -> int | None:
        """A character of a set; None for a class or a control, which are added."""
        c = self._next()
        if c != "\\":
            return ord(c)
        plain, more = self._escape()
        if len(plain) == 1 and plain[0][0] == plain[0][1] and not more:
            return plain[0][0]
        ranges += plain
        escaped += more
        return None

    def _written(self, plain: Ranges, escaped: Sequence[int]) -> str:
        """One of these characters, as JSON writes them."""
        if len(plain) == 1 and plain[0][0] == plain[0][1] and not escaped:
            return text(chr(plain[0][0]))
        parts = [set_of(plain)] if plain else []
        parts += [text(json.dumps(chr(code))[1:-1]) for code in dict.fromkeys(escaped)]
        if not parts:
            raise self._cannot()
        return parts[0] if len(parts) == 1 else f"({' | '.join(parts)})"


def _sorted_out(ranges: Ranges) -> tuple[Ranges, list[int]]:
    """(what JSON writes as it is, the quote and the backslash among them, and controls that are named alone)"""
    plain = [(max(low, a), min(high, b)) for low, high in ranges for a, b in PLAIN if max(low, a) <= min(high, b)]
    escaped = [code for code in (0x22, 0x5C) if any(low <= code <= high for low, high in ranges)]
    escaped += [low for low, high in ranges if low == high < 0x20]
    return plain, escaped


def _without(ranges: Ranges, others: Ranges) -> Ranges:
    for low, high in others:
        cut = [part for a, b in ranges for part in ((a, min(b, low - 1)), (max(a, high + 1), b))]
        ranges = list(dict.fromkeys((a, b) for a, b in cut if a <= b))
    return ranges
