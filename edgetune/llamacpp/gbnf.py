"""Grammars in GBNF, llama.cpp's notation: a text as rules. Parentheses are rules without a name."""

from __future__ import annotations

import re
from dataclasses import dataclass

from ..errors import UsageError

LARGEST = 1 << 18  # characters
EXPANDED = 20_000  # parts in all, with their repetitions
HINT = "llama.cpp's grammars/README.md describes GBNF"

_ESCAPE = r'\\(?:[trn\\"\[\]]|x[0-9a-fA-F]{2}|u[0-9a-fA-F]{4}|U00(?:0[0-9a-fA-F]|10)[0-9a-fA-F]{4})'
_TOKEN = re.compile(
    r"(?P<space>[ \t]+|#[^\n]*)|(?P<line>\r\n|\r|\n)|(?P<rule>[a-zA-Z0-9-]+[ \t]*::=)|(?P<name>[a-zA-Z0-9-]+)"
    rf'|(?P<text>"(?:[^"\\\0]|{_ESCAPE})*")|(?P<set>\[(?:[^\]\\\0]|{_ESCAPE})+\])|(?P<any>\.)'
    r"|(?P<open>\()|(?P<close>\))|(?P<or>\|)|(?P<times>[*+?]|\{[ \t]*\d{1,9}[ \t]*(?:,[ \t]*(?:\d{1,9})?[ \t]*)?\})")

_CHARACTER = re.compile(rf"{_ESCAPE}|[^\\]", re.DOTALL)
_RANGE = re.compile(rf"({_ESCAPE}|[^\\])(?:-({_ESCAPE}|[^\\]))?", re.DOTALL)
CHARACTERS = ((1, 0xD7FF), (0xE000, 0x10FFFF))
INSIDE = ("space", "line", "name", "text", "set", "any", "open", "close", "or", "times")  # a rule


@dataclass
class Item:
    """A part of a sequence: characters, or a rule. rule: its name, or the number of what stands in parentheses."""

    rule: str | int | None = None
    characters: str = ""  # as the grammar writes them: a text, a set or a dot
    least: int = 1
    most: int | None = 1  # None: any number


Ranges = list[tuple[int, int]]  # of code points, both ends included
Sequence = list[Item]
Rules = dict["str | int", list[Sequence]]  # name or number -> its alternatives


def parse(text: str) -> Rules:
    """The grammar's rules. Raises UsageError for one that is not valid, or large."""
    if len(text) > LARGEST:
        raise UsageError(f"the grammar has {len(text)} characters", f"use at most {LARGEST}")
    rules = _read(text)
    if "root" not in rules:
        raise UsageError("the grammar has no rule named root", HINT)
    items = [item for sequences in rules.values() for sequence in sequences for item in sequence]
    if missing := sorted(str(item.rule) for item in items if item.rule is not None and item.rule not in rules):
        raise UsageError(f"the grammar has no rule {missing[0]!r:.100}, which another one names", HINT)
    parts = sum(item.most or item.least + 1 for item in items)
    if parts > EXPANDED:
        raise UsageError(f"the grammar has {parts} parts with their repetitions", f"use at most {EXPANDED}")
    return rules


def sets(characters: str) -> list[Ranges]:
    """Returns the characters that each place of a text, a set or a dot may be."""
    if characters.startswith('"'):
        return [_within([(code, code)]) for code in map(_code, _CHARACTER.findall(characters[1:-1]))]
    negated = characters.startswith("[^")
    ranges = [(_code(low), _code(high or low)) for low, high in _RANGE.findall(characters[1 + negated : -1])]
    if characters in (".", "") or negated:
        return [_within(_others(ranges))] if characters else []
    return [_within(ranges)]


def _code(character: str) -> int:
    if not character.startswith("\\"):
        return ord(character)
    kind = character[1]
    return int(character[2:], 16) if kind in "xuU" else ord({"t": "\t", "r": "\r", "n": "\n"}.get(kind, kind))


def _others(ranges: Ranges) -> Ranges:
    found = []
    start = 0
    for low, high in sorted(ranges):
        found.append((start, low - 1))
        start = max(start, high + 1)
    return [*found, (start, 0x10FFFF)]


def _within(ranges: Ranges) -> Ranges:
    """Leaves out the end of C's texts and halves of surrogate pairs, which no token has; the lowest first."""
    parts = [(max(low, first), min(high, last)) for low, high in ranges for first, last in CHARACTERS]
    return sorted((low, high) for low, high in parts if low <= high)


def _read(text: str) -> Rules:
    """The rules by their names; those of parentheses by numbers."""
    rules: Rules = {}
    open_groups: list[list[Sequence]] = []  # within one another, the rule's alternatives first
    last: Item | None = None  # what a repetition would belong to
    continues = False  # whether a rule may continue on the next line
    line = 1
    place = 0
    while place < len(text):
        token = _TOKEN.match(text, place)
        kind = token.lastgroup if token else None
        if token is None or kind not in (("space", "line", "rule") if not open_groups else INSIDE):
            raise _wrong(line, text[place : place + 20])
        place = token.end()
        found = token[0]
        if kind == "line":
            line += 1
            if len(open_groups) == 1 and not continues:
                open_groups.clear()
                last = None
        elif kind == "rule":
            open_groups = [[[]]]
            rules[found[:-3].strip()] = open_groups[0]
        elif kind == "open":
            group = Item(rule=len(rules))
            open_groups[-1][-1].append(group)
            open_groups.append([[]])
            rules[len(rules)] = open_groups[-1]
        elif kind == "close":
            if len(open_groups) < 2:
                raise _wrong(line, found)
            open_groups.pop()
            last = open_groups[-1][-1][-1]
        elif kind == "or":
            open_groups[-1].append([])
        elif kind == "times":
            if last is None:
                raise _wrong(line, found)
            _repeat(last, found, line)
        elif kind != "space":
            last = Item(rule=found) if kind == "name" else Item(characters=found)
            open_groups[-1][-1].append(last)
        if kind in ("open", "or", "rule", "times") or found == '""':
            last = None  # nothing that can be repeated
        if kind not in ("space", "line"):
            continues = kind in ("or", "rule")
    if len(open_groups) > 1:
        raise UsageError("the grammar ends within parentheses", HINT)
    return rules


def _repeat(item: Item, times: str, line: int) -> None:
    if times in "*+?":
        item.least = int(times == "+")
        item.most = 1 if times == "?" else None
        return
    low, comma, high = times.strip("{}").partition(",")
    item.least = int(low)
    item.most = (int(high) if high.strip() else None) if comma else item.least
    if item.most is not None and item.most < item.least:
        raise UsageError(f"line {line} of the grammar repeats {times}", "write the smaller number first")


def _wrong(line: int, text: str) -> UsageError:
    return UsageError(f"line {line} of the grammar cannot be read at {text!r}", HINT)
