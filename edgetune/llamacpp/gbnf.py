"""Grammars in GBNF, checked before llama.cpp sees them.

llama.cpp's parser writes to stderr what it refuses, and recurses as deep as a grammar's parentheses. So what it cannot
take, and what would make it slow or large, is refused here, with the line. The check takes time in proportion to the
grammar's length: parentheses are rules without a name, and each rule is visited when what it depends on is known.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass

from ..errors import UsageError

LARGEST = 1 << 18  # characters
DEEPEST = 64  # parentheses within one another
REPEATED = 1900  # times that a part may be repeated; llama.cpp refuses 2000
EXPANDED = 20_000  # parts in all, with their repetitions
OPTIONAL = 64  # parts one after another that may all be absent
WAYS = 1024  # in which a rule may begin: llama.cpp follows all of them at once
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

    @property
    def empty(self) -> bool:
        return self.characters == '""'

    @property
    def may_be_absent(self) -> bool:
        return self.least == 0 or self.most == 0 or self.empty


Ranges = list[tuple[int, int]]  # of code points, both ends included
Sequence = list[Item]
Rules = dict["str | int", list[Sequence]]  # name or number -> its alternatives


def check(text: str) -> Rules:
    """The grammar's rules. Raises UsageError for one that llama.cpp would not take, or not at any price."""
    if len(text) > LARGEST:
        raise UsageError(f"the grammar has {len(text)} characters", f"use at most {LARGEST}")
    rules = _parse(text)
    if "root" not in rules:
        raise UsageError("the grammar has no rule named root", HINT)
    items = [item for sequence in _sequences(rules) for item in sequence]
    if missing := sorted(str(item.rule) for item in items if item.rule is not None and item.rule not in rules):
        raise UsageError(f"the grammar has no rule {missing[0]!r:.100}, which another one names", HINT)
    parts = sum(item.most or item.least + 1 for item in items)
    if parts > EXPANDED:
        raise UsageError(f"the grammar has {parts} parts with their repetitions", f"use at most {EXPANDED}")
    _check_recursion(rules)
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


def _parse(text: str) -> Rules:
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
            if len(open_groups) > DEEPEST:
                raise UsageError(f"line {line} of the grammar has {len(open_groups)} parentheses within one another",
                                 f"use at most {DEEPEST}")
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
    if max(item.least, item.most or 0) > REPEATED or (item.most is not None and item.most < item.least):
        raise UsageError(f"line {line} of the grammar repeats {times}", f"use at most {REPEATED}, the smaller first")


def _wrong(line: int, text: str) -> UsageError:
    return UsageError(f"line {line} of the grammar cannot be read at {text!r}", HINT)


def _sequences(rules: Rules) -> Iterator[Sequence]:
    for alternatives in rules.values():
        yield from alternatives


def _check_recursion(rules: Rules) -> None:
    """A rule that begins with itself, or repeats what may be empty, has no end."""
    empty = _that_may_be_empty(rules)
    for sequence in _sequences(rules):
        absent = 0  # parts one after another
        for item in sequence:
            absent = absent + 1 if item.may_be_absent or item.rule in empty else 0
            if absent > OPTIONAL:
                raise UsageError(f"the grammar has {absent} parts one after another that may be absent",
                                 f"use at most {OPTIONAL}")
            if (item.most is None or item.most > 1) and (item.empty or item.rule in empty):
                raise UsageError(f"the grammar repeats {_named(item.rule)}, which may be empty",
                                 "let it have a character in any case")
    begins: dict[str | int, list[str | int]] = {}  # rule -> those that it may begin with
    for name, alternatives in rules.items():
        begins[name] = [item.rule for sequence in alternatives for item in _front(sequence, empty)
                        if item.rule is not None]
    open_begins = {name: len(set(firsts)) for name, firsts in begins.items()}
    users: dict[str | int, set[str | int]] = defaultdict(set)  # rule -> those that may begin with it
    for name, firsts in begins.items():
        for first in firsts:
            users[first].add(name)
    ready = [name for name, count in open_begins.items() if count == 0]
    ways: dict[str | int, int] = {}  # in which a rule may begin
    for name in ready:  # it grows meanwhile
        ways[name] = sum(map(ways.__getitem__, begins[name])) + sum(
            item.rule is None for sequence in rules[name] for item in _front(sequence, empty))
        if ways[name] > WAYS:
            raise UsageError(f"the grammar may begin {_named(name)} in {ways[name]} ways",
                             f"use at most {WAYS}: let alternatives begin with different characters")
        for user in users[name]:
            open_begins[user] -= 1
            if open_begins[user] == 0:
                ready.append(user)
    if circular := sorted(str(name) for name in rules.keys() - ways.keys() if isinstance(name, str)):
        raise UsageError(f"the rule {circular[0]!r:.100} of the grammar begins with itself",
                         "put what repeats after a character")


def _named(rule: str | int | None) -> str:
    return f"the rule {rule!r:.100}" if isinstance(rule, str) else "a part in parentheses"


def _that_may_be_empty(rules: Rules) -> set[str | int]:
    """The rules of which an alternative may be absent as a whole."""
    users: dict[str | int, list[tuple[str | int, int]]] = defaultdict(list)  # rule -> (user, number of its sequence)
    needed: list[int] = []  # of each sequence, the items that are there in any case, as far as is known
    empty: list[str | int] = []
    for name, alternatives in rules.items():
        for sequence in alternatives:
            there = [item for item in sequence if not item.may_be_absent]
            for item in there:
                if item.rule is not None:
                    users[item.rule].append((name, len(needed)))
            needed.append(len(there))
            if not there:
                empty.append(name)
    known = set(empty)
    for name in empty:  # it grows meanwhile
        for user, number in users.pop(name, ()):
            needed[number] -= 1
            if needed[number] == 0 and user not in known:
                known.add(user)
                empty.append(user)
    return known


def _front(sequence: Sequence, empty: set[str | int]) -> Iterator[Item]:
    for item in sequence:
        yield item
        if not (item.may_be_absent or item.rule in empty):
            break
