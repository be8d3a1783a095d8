"""Grammars in GBNF, checked before llama.cpp sees them.

llama.cpp's parser writes to stderr what it refuses, and recurses as deep as a grammar's parentheses. So what it cannot
take, and what would make it slow or large, is refused here, with the line.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field

from ..errors import UsageError

LARGEST = 1 << 18  # characters
DEEPEST = 64  # parentheses within one another
REPEATED = 1900  # times that a part may be asked for; llama.cpp refuses 2000
EXPANDED = 20_000  # parts in all, with their repetitions
OPTIONAL = 64  # parts one after another that may all be absent
WAYS = 1024  # in which a rule may begin: llama.cpp follows all of them at once
HINT = "llama.cpp's grammars/README.md describes GBNF"

_ESCAPE = r'\\(?:[trn\\"\[\]]|x[0-9a-fA-F]{2}|u[0-9a-fA-F]{4}|U00(?:0[0-9a-fA-F]|10)[0-9a-fA-F]{4})'
_TOKEN = re.compile(
    r"(?P<space>[ \t]+|#[^\n]*)|(?P<line>\r\n|\r|\n)|(?P<rule>[a-zA-Z0-9-]+[ \t]*::=)|(?P<name>[a-zA-Z0-9-]+)"
    rf'|(?P<text>"(?:[^"\\\0]|{_ESCAPE})*")|(?P<set>\[(?:[^\]\\\0]|{_ESCAPE})+\])|(?P<any>\.)'
    r"|(?P<open>\()|(?P<close>\))|(?P<or>\|)|(?P<times>[*+?]|\{[ \t]*\d{1,9}[ \t]*(?:,[ \t]*(?:\d{1,9})?[ \t]*)?\})")

INSIDE = ("space", "line", "name", "text", "set", "any", "open", "close", "or", "times")  # a rule


@dataclass
class _Item:
    """A part of a sequence: characters, a rule's name, or alternatives in parentheses."""

    name: str = ""
    group: _Group | None = None
    empty: bool = False  # of text: ""
    least: int = 1
    most: int | None = 1  # None: any number


@dataclass
class _Group:
    """Alternatives, each a sequence."""

    sequences: list[list[_Item]] = field(default_factory=lambda: [[]])


def check(text: str) -> str:
    """The grammar itself. Raises UsageError for one that llama.cpp would not take, or not at any price."""
    if len(text) > LARGEST:
        raise UsageError(f"the grammar has {len(text)} characters", f"use at most {LARGEST}")
    rules = _parse(text)
    if "root" not in rules:
        raise UsageError("the grammar has no rule named root", HINT)
    names = {item.name for group in rules.values() for item in _items(group) if item.name}
    if missing := sorted(names - rules.keys()):
        raise UsageError(f"the grammar has no rule {missing[0]!r:.100}, which another one names", HINT)
    parts = sum(item.most or item.least + 1 for group in rules.values() for item in _items(group))
    if parts > EXPANDED:
        raise UsageError(f"the grammar has {parts} parts with their repetitions", f"use at most {EXPANDED}")
    _check_recursion(rules)
    return text


def _parse(text: str) -> dict[str, _Group]:
    """The rules by their names."""
    rules: dict[str, _Group] = {}
    open_groups: list[_Group] = []  # within one another, that of the rule first
    last: _Item | None = None  # what a repetition would belong to
    goes_on = False  # whether a rule may continue on the next line
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
            if len(open_groups) == 1 and not goes_on:
                open_groups.clear()
                last = None
        elif kind == "rule":
            open_groups = [_Group()]
            rules[found[:-3].strip()] = open_groups[0]
        elif kind == "open":
            if len(open_groups) > DEEPEST:
                raise UsageError(f"line {line} of the grammar has {len(open_groups)} parentheses within one another",
                                 f"use at most {DEEPEST}")
            group = _Group()
            open_groups[-1].sequences[-1].append(_Item(group=group))
            open_groups.append(group)
        elif kind == "close":
            if len(open_groups) < 2:
                raise _wrong(line, found)
            open_groups.pop()
            last = open_groups[-1].sequences[-1][-1]
        elif kind == "or":
            open_groups[-1].sequences.append([])
        elif kind == "times":
            if last is None:
                raise _wrong(line, found)
            _repeat(last, found, line)
        elif kind != "space":
            last = _Item(name=found if kind == "name" else "", empty=found == '""')
            open_groups[-1].sequences[-1].append(last)
        if kind in ("open", "or", "rule", "times") or found == '""':
            last = None  # nothing that can be repeated
        if kind not in ("space", "line"):
            goes_on = kind in ("or", "rule")
    if len(open_groups) > 1:
        raise UsageError("the grammar ends within parentheses", HINT)
    return rules


def _repeat(item: _Item, times: str, line: int) -> None:
    if times in "*+?":
        item.least = int(times == "+")
        item.most = 1 if times == "?" else None
        return
    low, comma, high = times.strip("{}").partition(",")
    item.least = int(low)
    item.most = (int(high) if high.strip() else None) if comma else item.least
    if max(item.least, item.most or 0) > REPEATED or (item.most is not None and item.most < item.least):
        raise UsageError(f"line {line} of the grammar repeats {times}", f"use at most {REPEATED}, the smaller first")


def _wrong(line: int, text: str) -> UsageError:
    return UsageError(f"line {line} of the grammar cannot be read at {text!r}", HINT)


def _items(group: _Group) -> Iterator[_Item]:
    """All of a rule, those within parentheses too."""
    for sequence in group.sequences:
        for item in sequence:
            yield item
            if item.group:
                yield from _items(item.group)


def _check_recursion(rules: dict[str, _Group]) -> None:
    """A rule that begins with itself, or repeats what may be empty, has no end."""
    empty: set[str] = set()

    def may_be_empty(item: _Item) -> bool:
        inner = any(all(map(may_be_empty, s)) for s in item.group.sequences) if item.group else item.name in empty
        return item.least == 0 or item.most == 0 or item.empty or inner

    while new := {name for name, group in rules.items() if name not in empty and may_be_empty(_Item(group=group))}:
        empty |= new
    for name, group in rules.items():
        for item in _items(group):
            once = _Item(item.name, item.group, item.empty)
            if (item.most is None or item.most > 1) and may_be_empty(once):
                raise UsageError(f"the rule {name!r:.100} of the grammar repeats what may be empty",
                                 "ask for a character in it")
    begins = {name: set(_first(group, may_be_empty)) for name, group in rules.items()}
    ways: dict[str, int] = {}
    while leaves := {name for name, firsts in begins.items() if not firsts}:
        for name in leaves:
            ways[name] = _ways(rules[name], ways, may_be_empty)
            if ways[name] > WAYS:
                raise UsageError(f"the rule {name!r:.100} of the grammar may begin in {ways[name]} ways",
                                 f"use at most {WAYS}: let alternatives begin with different characters")
        begins = {name: firsts - leaves for name, firsts in begins.items() if name not in leaves}
    if begins:
        raise UsageError(f"the rule {min(begins)!r:.100} of the grammar begins with itself",
                         "put what repeats behind a character")


def _ways(group: _Group, known: Mapping[str, int], may_be_empty: Callable[[_Item], bool]) -> int:
    """In how many ways it may begin."""
    found = 0
    for sequence in group.sequences:
        run = 0
        first = True
        for item in sequence:
            if first:
                found += _ways(item.group, known, may_be_empty) if item.group else known.get(item.name, 1)
            first = first and may_be_empty(item)
            run = run + 1 if may_be_empty(item) else 0
            if run > OPTIONAL:
                raise UsageError(f"the grammar has {run} parts one after another that may be absent",
                                 f"use at most {OPTIONAL}")
    return found


def _first(group: _Group, may_be_empty: Callable[[_Item], bool]) -> Iterator[str]:
    """The rules that it may begin with."""
    for sequence in group.sequences:
        for item in sequence:
            if item.name:
                yield item.name
            if item.group:
                yield from _first(item.group, may_be_empty)
            if not may_be_empty(item):
                break
