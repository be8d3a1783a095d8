"""Calls of tools in an answer's text: found while it is made, and separated from other text.

Models write a call as JSON, {"name": ..., "arguments": {...}}, one or a list of them, mostly after a tag such as
<tool_call>. Text that does not become a call stays text.
"""

from __future__ import annotations

import json
import re
import secrets
from collections.abc import Callable, Collection
from dataclasses import dataclass, replace
from typing import Any

from ..llamacpp.sampling import overlap

HEAD = re.compile(r'\s*[\[,]?\s*\{\s*(?:"type"\s*:\s*"function"\s*,\s*)?"name"\s*:\s*("(?:[^"\\]|\\.)*")\s*,\s*'
                  r'"(?:arguments|parameters)"\s*:\s*(?=\{)')
ID_BYTES = 12


@dataclass(frozen=True)
class CallPiece:
    """A part of a call: the first one of each has its id and name, those after it more of its arguments as JSON."""

    index: int  # of the call in its answer
    id: str = ""
    name: str = ""
    arguments: str = ""


@dataclass(frozen=True)
class WholeCall:
    """A whole call; arguments: JSON as the model wrote it."""

    id: str
    name: str
    arguments: str


def join(pieces: list[CallPiece]) -> list[WholeCall]:
    """The calls of which an answer's pieces are the parts."""
    calls: dict[int, WholeCall] = {}
    for piece in pieces:
        call = calls.get(piece.index, WholeCall(piece.id, piece.name, ""))
        calls[piece.index] = WholeCall(call.id, call.name, call.arguments + piece.arguments)
    return [calls[index] for index in sorted(calls)]


class CallReader:
    """Reads an answer's text piece by piece; gives text besides calls, and parts of calls.

    begin, end: the tags around a call; "": the answer is a call from its first character, or none. names: of the
    functions that exist. Text that is no call of one of them stays text.
    """

    def __init__(self, begin: str, end: str, names: Collection[str]) -> None:
        self.begin = begin
        self.end = end
        self.names = names
        self.count = 0  # of calls so far
        self._held = ""  # text that is not yet known to be a call or not
        self._read: Callable[[list[CallPiece]], str] = self._text if begin else self._call
        self._arguments = _ObjectEnd()
        self._last = False
        self._behind_call = False

    def push(self, text: str, last: bool = False) -> tuple[str, list[CallPiece]]:
        """(text that belongs to no call, parts of calls). last: no more comes."""
        self._held += text
        self._last = last
        said = ""
        calls: list[CallPiece] = []
        before: object = None
        while self._held and before != (before := (len(self._held), self._read)):
            said += self._read(calls)
        return said, calls

    # states of the reader; each takes its part of the held text, returns plain text of it, and sets the next state

    def _text(self, _calls: list[CallPiece]) -> str:
        """Reads up to the beginning of a call. Space after a call is not part of the text."""
        if self._behind_call:
            self._held = self._held.lstrip()
            self._behind_call = not self._held
        place = self._held.find(self.begin) if self.begin else -1
        if place >= 0:
            self._read = self._call
            end = place
        else:
            end = len(self._held) - (0 if self._last else overlap(self._held, self.begin))
        said = self._held[:end]
        self._held = self._held[end:]
        return said

    def _call(self, calls: list[CallPiece]) -> str:
        """Reads up to the arguments of a call, or whole calls whose arguments do not come last."""
        inner = self._held[len(self.begin) :] if self._held.startswith(self.begin) else self._held
        head = HEAD.match(inner)
        if head and (name := _first_json(head[1])[0]) in self.names:
            calls.append(self._begin(name))
            self._held = inner[head.end() :]
            self._arguments = _ObjectEnd()
            self._read = self._object
            return ""
        found, end = _first_json(inner)
        given = found if isinstance(found, list) else [found]
        if given and all(_is_call(each, self.names) for each in given):
            for each in given:
                arguments = json.dumps(each.get("arguments", each.get("parameters")), ensure_ascii=False)
                calls.append(replace(self._begin(each["name"]), arguments=arguments))
            self._held = inner[end:]
            self._read = self._after
            return ""
        if end or self._last or inner.strip()[:1] not in ("", "{", "[", ","):
            return self._no_call()
        return ""

    def _no_call(self) -> str:
        """Gives as text what looked like a call, at least its first character."""
        size = max(len(self.begin), 1)
        said = self._held[:size]
        self._held = self._held[size:]
        self._read = self._text
        return said

    def _object(self, calls: list[CallPiece]) -> str:
        size = self._arguments.feed(self._held)
        calls.append(CallPiece(self.count - 1, arguments=self._held[:size]))
        self._held = self._held[size:]
        if self._arguments.found:
            self._read = self._after
        return ""

    def _after(self, _calls: list[CallPiece]) -> str:
        """Reads the end of a call; in a list another one may follow."""
        self._behind_call = True
        self._held = self._held.lstrip(" \r\n\t}]")
        if self._held.startswith(","):
            self._read = self._call
        elif self.end and self._held.startswith(self.end):
            self._held = self._held[len(self.end) :]
            self._read = self._text
        elif self._held and (self._last or not self.end.startswith(self._held)):
            self._read = self._text
        return ""

    def _begin(self, name: str) -> CallPiece:
        self.count += 1
        return CallPiece(self.count - 1, "call_" + secrets.token_hex(ID_BYTES), name)


class _ObjectEnd:
    """Finds the end of a JSON object that comes in pieces."""

    def __init__(self) -> None:
        self.found = False
        self._depth = 0
        self._in_string = False
        self._escaped = False

    def feed(self, text: str) -> int:
        """The number of characters that belong to it."""
        for place, c in enumerate(text):
            if self._escaped:
                self._escaped = False
            elif c == "\\":
                self._escaped = self._in_string
            elif c == '"':
                self._in_string = not self._in_string
            elif not self._in_string:
                self._depth += (c in "{[") - (c in "}]")
                if self._depth == 0:
                    self.found = True
                    return place + 1
        return len(text)


def _first_json(text: str) -> tuple[Any, int]:
    """The JSON value that a text begins with, and where it ends; (None, 0) where it is none, or not whole."""
    start = len(text) - len(text.lstrip())
    try:
        return json.JSONDecoder().raw_decode(text, start)
    except (ValueError, RecursionError):
        return None, 0


def _is_call(value: Any, names: Collection[str]) -> bool:
    if not isinstance(value, dict) or not isinstance(value.get("name"), str) or value["name"] not in names:
        return False
    return isinstance(value.get("arguments", value.get("parameters")), dict)
