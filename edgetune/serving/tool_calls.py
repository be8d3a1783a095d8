"""Calls of tools in an answer's text: found while it is made, and separated from other text.

Models write a call as JSON, {"name": ..., "arguments": {...}}, one or a list of them, mostly after a tag such as
<tool_call>. Text that does not become a call stays text.
"""

from __future__ import annotations

import json
import re
import secrets
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from ..errors import EdgetuneError, UsageError
from ..llamacpp.json_numbers import SchemaPath
from ..llamacpp.json_pattern import text
from ..llamacpp.json_schema import Rules
from ..llamacpp.sampling import overlap
from ..llamacpp.tokenizer import Tokenizer
from .question import Question, Tool

NAME = "lamp_on"
ARGUMENTS = {"room": "hall"}
ID = "call00000"  # Mistral's templates ask for 9 characters
WRITTEN = re.compile(r'\{\s*"room"\s*:\s*"hall"\s*\}')
KEY_OF_NAME = re.compile(r'[\[{]\s*(?:"type"\s*:\s*"function"\s*,\s*)?"name"\s*:\s*$')
KEY_OF_ARGUMENTS = re.compile(r'\s*,\s*"(arguments|parameters)"\s*:\s*')
MARK = re.compile(r"\S+$")


@dataclass(frozen=True)
class CallForm:
    """A call is before + the name as JSON + between + the arguments as JSON + after."""

    before: str = '<tool_call>\n{"name": '
    between: str = ', "arguments": '
    after: str = "}\n</tool_call>"

    @property
    def begin(self) -> str:
        """The tag that a call begins with, "" for none."""
        found = MARK.search(re.split(r"[\[{]\s*[{\"]", self.before)[0].rstrip())
        return found[0] if found else ""

    @property
    def end(self) -> str:
        """The tag that it ends with, "" for none."""
        return self.after.lstrip(" \r\n\t}]").rstrip()


def call_form(tokenizer: Tokenizer) -> CallForm:
    """The form of calls in the model's template; the most common one if the template has none in JSON."""
    function = {"name": NAME, "arguments": ARGUMENTS}
    tool = {"type": "function", "function": {"name": NAME, "description": "", "parameters": {
        "type": "object", "properties": {"room": {"type": "string"}}}}}
    asked = [{"role": "user", "content": "on"}]
    said = {"role": "assistant", "content": "", "tool_calls": [{"id": ID, "type": "function", "function": function}]}
    try:
        start = tokenizer.render(asked, [tool], add_generation_prompt=True)
        whole = tokenizer.render([*asked, said], [tool])
    except EdgetuneError:  # it has no place for them, or other wishes
        return CallForm()
    return _read(str(whole)[len(start) :], tokenizer) if str(whole).startswith(start) else CallForm()


def _read(written: str, tokenizer: Tokenizer) -> CallForm:
    """The form of a call in the text that the template writes after the prompt."""
    before, _, rest = written.partition(f'"{NAME}"')
    arguments = WRITTEN.search(rest)
    if not arguments or not KEY_OF_NAME.search(before) or not KEY_OF_ARGUMENTS.fullmatch(rest[: arguments.start()]):
        return CallForm()
    after = rest[arguments.end() :]
    end = min((place for mark in tokenizer.control.ids if (place := after.find(mark)) >= 0), default=len(after))
    return CallForm(before, rest[: arguments.start()], after[:end].rstrip())


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


NO_ARGUMENTS = {"type": "object", "properties": {}, "additionalProperties": False}
Schema = Mapping[str, Any]


def grammar_of(question: Question, form: CallForm) -> str:
    """The GBNF that the answers to a question obey; "" if the model is free.

    form: of its calls. Raises UsageError for a form that none can obey.
    """
    called = question.function is not None or question.tool_choice == "required"
    if question.grammar and (called or question.schema is not None):
        raise UsageError("a grammar is given, and another form that the answer is to have", "leave one of them out")
    if called:
        return _calls(_callable(question), form)
    if question.schema is None:
        return question.grammar
    tools = question.shown_tools
    return _calls(tools, form, Rules(question.schema)) if tools else Rules(question.schema).grammar()


def grammar_of_lines(schemas: Sequence[Schema], most: int) -> str:
    """The GBNF of one to `most` lines, each of them JSON of one of the schemas."""
    rules = Rules(True)
    line = rules.named(" | ".join(rules.rule_of_other(schema, SchemaPath()) for schema in schemas))
    return rules.whole(f'{line} ("\\n" {line}){{0,{most - 1}}}')


def _callable(question: Question) -> list[Tool]:
    tools = [tool for tool in question.shown_tools or ()
             if question.function is None or tool["function"]["name"] == question.function]
    if not tools:
        named = f"the function {question.function!r:.100}" if question.function else "a function"
        raise UsageError(f"tool_choice asks for {named}, and tools has none such", "add it to tools")
    return tools


def _calls(tools: Sequence[Tool], form: CallForm, other: Rules | None = None) -> str:
    """One call of one of the tools, or an answer by other rules."""
    rules = other or Rules(True)
    roots = [rules.rule(rules.root, SchemaPath())] if other else []
    for tool in tools:
        function = tool["function"]
        schema = function.get("parameters") or {}
        if schema.get("type", "object") != "object":
            raise UsageError(f"the parameters of the function {function['name']!r:.100} are no object",
                             "let their type be object")
        # a bare object may have any properties; but LangChain, for one, sends it for a function without arguments
        bare = not any(value for key, value in schema.items() if key not in ("type", "title", "description", "$schema"))
        taken = NO_ARGUMENTS if bare else {"type": "object", **schema}
        arguments = rules.rule_of_other(taken, SchemaPath(function["name"]))
        start = text(f"{form.before}{json.dumps(function['name'], ensure_ascii=False)}{form.between}")
        roots.append(f"{start} {arguments} {text(form.after)}")
    return rules.whole(" | ".join(roots))
