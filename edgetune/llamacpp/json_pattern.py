"""A regular expression as a rule of GBNF, for strings of JSON: the part of ECMA-262 that schemas use.

Characters that JSON writes with a backslash (quotes, backslashes, controls) come only where an expression names them.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from ..errors import UsageError

LABEL = "[a-z0-9]{1,20}(-[a-z0-9]{1,20}){0,2}"  # of a host's name, 63 characters at most
LOCAL = "[a-z0-9]{1,20}([.-][a-z0-9]{1,20}){0,2}"  # of an address, 64 characters at most
FORMATS = {
    "date": r"^[0-9]{4}-(0[1-9]|1[0-2])-(0[1-9]|1[0-9]|2[0-8])$",  # a day that every month has
    "time": r"^([01][0-9]|2[0-3]):[0-5][0-9]:[0-5][0-9](\.[0-9]{1,6})?(Z|[+-]([01][0-9]|2[0-3]):[0-5][0-9])$",
    "uuid": r"^[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}$",
    "email": rf"^{LOCAL}@{LABEL}(\.[a-z]{{2,12}}){{1,2}}$",
    "hostname": rf"^{LABEL}(\.{LABEL}){{0,3}}$",
    "ipv4": r"^((25[0-5]|2[0-4][0-9]|1[0-9][0-9]|[1-9]?[0-9])\.){3}(25[0-5]|2[0-4][0-9]|1[0-9][0-9]|[1-9]?[0-9])$",
    "ipv6": r"^([0-9a-f]{1,4}:){7}[0-9a-f]{1,4}$",
    "duration": r"^P([0-9]{1,3}W|[0-9]{1,3}D(T[0-9]{1,2}H)?|T([0-9]{1,2}H)?[0-9]{1,2}M([0-9]{1,2}S)?|T[0-9]{1,2}[HS])$",
    "uri": rf"^https?://{LABEL}(\.{LABEL}){{0,3}}(/[a-zA-Z0-9._~-]*)*$",
}
FORMATS["date-time"] = FORMATS["date"][:-1] + "T" + FORMATS["time"][1:]
OTHER_FORMATS = ("idn-email", "idn-hostname", "uri-reference", "iri", "iri-reference", "uri-template", "json-pointer",
                 "relative-json-pointer", "regex")  # of the standard too; any other name is a remark


try:
    from re import _parser as sre  # type: ignore[attr-defined]
except ImportError:  # Python 3.10
    import sre_parse as sre

Ranges = list[tuple[int, int]]  # of code points, both ends included
Node = tuple[Any, Any]  # of the parser's tree: its kind, and what it is given

PLAIN: Ranges = [(0x20, 0x21), (0x23, 0x5B), (0x5D, 0x7E), (0x80, 0xD7FF), (0xE000, 0x10FFFF)]
DIGITS: Ranges = [(48, 57)]
WORD: Ranges = [(48, 57), (65, 90), (95, 95), (97, 122)]
SPACE: Ranges = [(32, 32)]
REPEATED = 1900
CHARACTER = (sre.IN, sre.LITERAL, sre.NOT_LITERAL, sre.ANY)
OWN = re.compile(r"(?<!\\)(?:\\\\)*\\[aANUZ]|\{,")  # what ECMA-262 reads otherwise


def rule_of(pattern: str, char: str) -> str:
    """A rule's body for strings with the pattern. char: the rule of any character. Raises UsageError beyond GBNF."""
    try:
        tree = sre.parse(pattern)
    except (re.error, RecursionError, OverflowError) as error:
        raise _cannot(pattern, str(error)) from None
    if OWN.search(pattern) or tree.state.flags & ~re.UNICODE:
        raise _cannot(pattern)
    body = [*tree]
    start = body[:1] == [(sre.AT, sre.AT_BEGINNING)]
    end = body[start:][-1:] == [(sre.AT, sre.AT_END)]
    written = _Writer(pattern).alternatives([body[start : len(body) - end]])
    return f"{'' if start else f'{char}* '}({written}){'' if end else f' {char}*'}"


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


def _cannot(pattern: str, what: str = "") -> UsageError:
    return UsageError(f"the pattern {pattern!r:.200} has what a grammar cannot follow{what and f' ({what})'}",
                      "use characters, sets, groups, | and repetitions, ^ only at its start, $ only at its end")


class _Writer:
    """Writes what Python's own parser of regular expressions reads."""

    def __init__(self, pattern: str) -> None:
        self.pattern = pattern

    def alternatives(self, ways: Iterable[Iterable[Node]]) -> str:
        return " | ".join(" ".join(self.part(*node) for node in way) or '""' for way in ways)

    def part(self, kind: Any, given: Any) -> str:
        """One node of the parser's tree."""
        if kind is sre.IN:
            return self.one_of(given)
        if kind in (sre.LITERAL, sre.NOT_LITERAL):
            return self.one_of([*[(sre.NEGATE, None)] * (kind is sre.NOT_LITERAL), (sre.LITERAL, given)])
        if kind is sre.ANY:
            return set_of(PLAIN)
        if kind is sre.BRANCH:
            return f"({self.alternatives(given[1])})"
        if kind is sre.SUBPATTERN and not (given[1] or given[2]):  # without flags
            return f"({self.alternatives([given[3]])})"
        if kind in (sre.MAX_REPEAT, sre.MIN_REPEAT):  # for what may be found they are the same
            least, most, body = given
            if max(least, 0 if most == sre.MAXREPEAT else most) > REPEATED:
                raise _cannot(self.pattern, f"it repeats more than {REPEATED} times")
            once = self.alternatives([body])
            once = once if len(body) == 1 and body[0][0] in CHARACTER else f"({once})"
            return f"{once}{{{least},{'' if most == sre.MAXREPEAT else most}}}"
        raise _cannot(self.pattern, str(kind).lower())

    def one_of(self, members: Sequence[Node]) -> str:
        """One of some characters, as JSON writes them."""
        negated = members[0][0] is sre.NEGATE
        ranges = [each for kind, given in members[negated:] for each in self.ranges(kind, given)]
        plain, escaped = (_without(PLAIN, ranges), []) if negated else _sorted_out(ranges)
        parts = [set_of(plain)] if plain else []
        parts += [text(json.dumps(chr(code))[1:-1]) for code in dict.fromkeys(escaped)]
        if not parts:
            raise _cannot(self.pattern)
        return parts[0] if len(parts) == 1 else f"({' | '.join(parts)})"

    def ranges(self, kind: Any, given: Any) -> Ranges:
        if kind is sre.CATEGORY and given in CLASSES:
            return CLASSES[given]
        if kind is sre.RANGE:
            return [given]
        if kind is sre.LITERAL:
            return [(given, given)]
        raise _cannot(self.pattern, str(given).lower())


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


CLASSES = {sre.CATEGORY_DIGIT: DIGITS, sre.CATEGORY_WORD: WORD, sre.CATEGORY_SPACE: SPACE,
           sre.CATEGORY_NOT_DIGIT: _without(PLAIN, DIGITS), sre.CATEGORY_NOT_WORD: _without(PLAIN, WORD),
           sre.CATEGORY_NOT_SPACE: _without(PLAIN, SPACE)}


def without_remark(schema: Mapping[str, Any]) -> Mapping[str, Any]:
    """Drops a format that says nothing of strings, or that the standard does not know: Home Assistant has such."""
    kinds = schema.get("type") or "string"
    of_strings = kinds == "string" or (isinstance(kinds, list) and "string" in kinds)
    holds = of_strings and schema.get("format") in (*FORMATS, *OTHER_FORMATS)
    return schema if holds or "format" not in schema else {k: v for k, v in schema.items() if k != "format"}
