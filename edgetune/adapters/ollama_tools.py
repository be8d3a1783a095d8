"""The part of a chat template that writes tools, calls and their results, in Go's language for Ollama.

As for the `Frame`, the model's template is filled with marks, and the text around them is kept.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ..errors import DataError
from ..llamacpp.tool_text import in_order
from .go_json import GoJson, Order, arguments_as_written, as_written

Chat = Sequence[Mapping[str, Any]]
Render = Callable[[Chat, Sequence[Mapping[str, Any]]], str]  # by the model's own template, ready for an answer
_INDENTS = (None, 4, 2)
_NAMES = ("tool3one", "tool3two")
_TOOLS = [{"type": "function", "function": {"name": name, "description": f"does {name}", "parameters": {
    "type": "object", "properties": {"a3": {"type": "string"}}, "required": ["a3"]}}} for name in _NAMES]
_CALLS = [{"type": "function", "function": {"name": name, "arguments": {"a3": f"{name} value"}}} for name in _NAMES]
_ASKED = {"role": "user", "content": "first3question"}
_SYSTEM = {"role": "system", "content": "the3system"}
_SAID = "said3first"
_RESULTS = ('one3"result', 'two3"result')


@dataclass(frozen=True)
class ToolFrame:
    """The text around tools, calls and results. opening, system_end, without: as a Frame's, where there are tools.

    inside: whether the tools stand in the first question, else before it. whole: whether with their type, else their
    functions alone. said_end: between words and calls; None where words with calls are not written. quoted: whether a
    result is a text of JSON. result_end: with the start of the answer.
    """

    tool_json: GoJson
    call_json: GoJson
    opening: str
    system_end: str
    without: str
    inside: bool
    whole: bool
    before: str
    between: str
    after: str
    call: tuple[str, str, str]  # before the name, before the arguments, and after them
    between_calls: str
    said_end: str | None
    result: str
    between_results: str
    result_end: str
    quoted: bool

    def texts(self) -> list[str]:
        return [self.opening, self.system_end, self.without, self.before, self.between, self.after, *self.call,
                self.between_calls, self.said_end or "", self.result, self.between_results, self.result_end]

    def fill_tools(self, tools: Sequence[Mapping[str, Any]]) -> str:
        """The tools as `go_tools` writes them."""
        return self.before + self.between.join(map(self._written, tools)) + self.after

    def fill_answer(self, message: Mapping[str, Any]) -> str:
        """What `go_answer` writes of an answer of the assistant."""
        said = str(message.get("content") or "")
        if not (calls := message.get("tool_calls")):
            return said
        head = "" if self.said_end is None or not said else said + self.said_end
        return head + self.between_calls.join(self._fill_call(call["function"]) for call in calls)

    def fill_result(self, message: Mapping[str, Any]) -> str:
        return json.dumps(message["content"], ensure_ascii=False) if self.quoted else str(message["content"])

    def keeps(self, tool: Mapping[str, Any]) -> bool:
        """Whether a tool is written for Ollama as for training."""
        return self._written(tool) == self.tool_json.dumps(self._shown(in_order(tool)))

    def go_tools(self) -> str:
        """The program for .Tools, with the text around them."""
        comma = f"{{{{ if $i }}}}{literal(self.between)}{{{{ end }}}}"
        listed = f"{{{{ range $i, $tool := $.Tools }}}}{comma}{self.tool_json.tool(self.whole)}{{{{ end }}}}"
        return literal(self.before) + listed + literal(self.after)

    def go_answer(self) -> str:
        """The program for an answer's words and calls. Ollama finds the tag of calls in the first text after
        `if .ToolCalls`, so nothing stands before that of the first call.
        """
        head, middle, end = map(literal, self.call)
        call = f"{head}{{{{ .Function.Name }}}}{middle}{self.call_json.arguments()}{end}"
        calls = (f"{{{{ if .ToolCalls }}}}{{{{ with index .ToolCalls 0 }}}}{call}{{{{ end }}}}"
                 f"{{{{ range slice .ToolCalls 1 }}}}{literal(self.between_calls)}{call}{{{{ end }}}}")
        if self.said_end is None:
            return calls + "{{ else }}{{ .Content }}{{ end }}"
        said = f"{{{{ if .Content }}}}{{{{ with .ToolCalls }}}}{literal(self.said_end)}{{{{ end }}}}{{{{ end }}}}"
        return "{{ .Content }}" + said + calls + "{{ end }}"

    def go_result(self) -> str:
        """The program for a result, of which several that follow each other may be one turn: $was is the role before.
        """
        content = '{{ printf "%q" .Content }}' if self.quoted else "{{ .Content }}"
        between = _unseen(self.between_results)
        return f'{{{{ if eq "tool" $was }}}}{between}{{{{ else }}}}{_unseen(self.result)}{{{{ end }}}}{content}'

    def go_result_end(self) -> str:
        return _unseen(self.result_end)

    def definitions(self) -> str:
        """What the other programs use, once they are written."""
        defines = self.tool_json.defines | self.call_json.defines
        return "".join(f'{{{{ define "{name}" }}}}{text}{{{{ end }}}}' for name, text in defines.items())

    def _written(self, tool: Mapping[str, Any]) -> str:
        return self.tool_json.dumps(self._shown(as_written(tool, self.tool_json.order)))

    def _shown(self, tool: Mapping[str, Any]) -> Any:
        return tool if self.whole else tool.get("function", tool)

    def _fill_call(self, function: Mapping[str, Any]) -> str:
        head, middle, end = self.call
        arguments = arguments_as_written(function["arguments"], self.call_json.order)
        return f"{head}{function['name']}{middle}{self.call_json.dumps(arguments)}{end}"


def literal(text: str) -> str:
    """A text in a program, whose last brace does not become a part of what follows."""
    return text[:-1] + '{{ "{" }}' if text.endswith("{") else text


def _unseen(text: str) -> str:
    """The text of a result, in which a newer Ollama does not find that the program writes results. So it lets llama.cpp
    fill the GGUF's own template where that writes tools, which is exact for any tools, and else the program.
    """
    return literal(text).replace("tool_response", 'tool{{ "_" }}response').replace("TOOL_RES", 'TOOL{{ "_" }}RES')


# ---- conversations on which a frame is checked -----------------------------------------------------------------------

_LAMP = {"type": "object", "properties": {
    "bright": {"type": "integer", "description": "from 0 to 9 & <no> more"},
    "domain": {"type": "array", "items": {"type": "string", "enum": ["light", "fan"]}},
    "room": {"type": ["string", "null"], "enum": ["hall", "Küche \"2\""]}}, "required": ["room"]}
CHECKED = [{"type": "function", "function": {"name": "set_lamp", "description": "Sets a lamp.\nTwice.",
                                             "parameters": _LAMP}},
           {"type": "function", "function": {"name": "time", "description": "Tells the time", "parameters": {
               "type": "object", "properties": {}, "required": []}}}]


def checks(order: Order, parallel: bool) -> list[tuple[Chat, list[dict[str, Any]]]]:
    """Conversations with tools that are in this order. parallel: also with two calls in an answer."""
    arguments = arguments_as_written({"room": "hall", "bright": 2, "domain": ["a", "b"], "warm": [0.5, True, None]},
                                     order)
    lamp = {"function": {"name": "set_lamp", "arguments": arguments}}
    time = {"function": {"name": "time", "arguments": {}}}
    asked: list[Mapping[str, Any]] = [_SYSTEM, {"role": "user", "content": "a"}]
    done = {"role": "tool", "name": "set_lamp", "content": 'ok, "hall"\n<on>'}
    called = [*asked, {"role": "assistant", "content": "", "tool_calls": [lamp]}, done]
    both = [*asked, {"role": "assistant", "content": "So:", "tool_calls": [time, lamp]}, done,
            {"role": "tool", "name": "time", "content": "12"}]
    later = [{"role": "assistant", "content": "It is on."}, {"role": "user", "content": "b"}]
    chats: list[Chat] = [asked, asked[1:], called, [*called[1:], *later], [*called, *later, *called[2:]]]
    chats += [both, [*both, *later]] if parallel else []
    return [(chat, [as_written(tool, order) for tool in tools]) for chat in chats for tools in (CHECKED, CHECKED[:1])]


# ---- reading a template ----------------------------------------------------------------------------------------------


class _Unread(Exception):
    """A template that is not of this kind."""


def read_tools(render: Render, question: str, question_end: str, answer_end: str, order: Order) -> ToolFrame | None:
    """The tool part of the template that `render` fills; None where it cannot be told. question, question_end and
    answer_end: of its Frame.
    """
    try:
        return _read(render, question, question_end, answer_end, order)
    except (_Unread, DataError):
        return None


def _read(render: Render, question: str, question_end: str, answer_end: str, order: Order) -> ToolFrame:
    plain = render([_ASKED], _TOOLS)
    indent, whole = _style(plain)
    written = GoJson(order, indent)
    marks = [written.dumps(tool if whole else tool["function"]) for tool in _TOOLS]
    opening, system_end, between, after, end = _cut(render([_SYSTEM, _ASKED], _TOOLS),
                                                    [_SYSTEM["content"], *marks, _ASKED["content"]])
    without, *others = _cut(plain, [*marks, _ASKED["content"]])
    if others != [between, after, end] or end != question_end:
        raise _Unread
    inside = not after.endswith(question)
    before = ""
    if inside:
        system_end, before = _parted(system_end, question)
        without, same = _parted(without, question)
        if same != before:
            raise _Unread
    else:
        after = after.removesuffix(question)
    call, said_end, result, result_end, quoted = _read_call(render, plain, answer_end)
    between_calls, between_results = _read_two(render, plain, call, answer_end + result, result_end, quoted)
    return ToolFrame(written, GoJson(order, None), opening, system_end, without, inside, whole, before, between, after,
                     call, between_calls, said_end, result, between_results, result_end, quoted)


def _style(text: str) -> tuple[int | None, bool]:
    """(indent, whether whole) of the first tool in a text."""
    for whole in (True, False):
        for indent in _INDENTS:
            tool = _TOOLS[0] if whole else _TOOLS[0]["function"]
            if text.count(json.dumps(tool, ensure_ascii=False, indent=indent)) == 1:
                return indent, whole
    raise _Unread


def _read_call(render: Render, asked: str,
               answer_end: str) -> tuple[tuple[str, str, str], str | None, str, str, bool]:
    """(the text around a call, between words and call, before a result, after it, whether it is quoted)."""
    arguments = json.dumps(_CALLS[0]["function"]["arguments"])  # type: ignore[index]

    def answered(content: str) -> tuple[str, bool]:
        text = _after(render([_ASKED, _said(content, 1), _result(0)], _TOOLS), asked)
        quoted = json.dumps(_RESULTS[0]) in text
        return text.replace(json.dumps(_RESULTS[0]), _RESULTS[0]) if quoted else text, quoted

    text, quoted = answered("")
    head, middle, rest, result_end = _cut(text, [_NAMES[0], arguments, _RESULTS[0]])
    if not answer_end or answer_end not in rest:
        raise _Unread
    end, _, result = rest.partition(answer_end)
    said = answered(_SAID)[0]
    said_end = said.removeprefix(_SAID).removesuffix(text) if _SAID in said else None
    if said != (text if said_end is None else _SAID + said_end + text):
        raise _Unread
    return (head, middle, end), said_end, result, result_end, quoted


def _read_two(render: Render, asked: str, call: tuple[str, str, str], before: str, after: str,
              quoted: bool) -> tuple[str, str]:
    """(between calls, between results); a template may refuse a second call."""
    head, _, end = call
    try:
        text = _after(render([_ASKED, _said("", 2), _result(0), _result(1)], _TOOLS), asked)
    except DataError:
        return "", ""
    results = [json.dumps(each) if quoted else each for each in _RESULTS]
    values = [json.dumps(each["function"]["arguments"]) for each in _CALLS]  # type: ignore[index]
    _, _, between, _, rest, between_results, last = _cut(text, [_NAMES[0], values[0], _NAMES[1], values[1], *results])
    if not between.startswith(end) or not between.endswith(head) or rest != end + before or last != after:
        raise _Unread
    return between[len(end):len(between) - len(head)], between_results


def _said(content: str, calls: int) -> dict[str, Any]:
    return {"role": "assistant", "content": content, "tool_calls": _CALLS[:calls]}


def _result(number: int) -> dict[str, Any]:
    return {"role": "tool", "name": _NAMES[number], "content": _RESULTS[number]}


def _after(text: str, start: str) -> str:
    if not text.startswith(start):
        raise _Unread
    return text[len(start):]


def _parted(text: str, middle: str) -> tuple[str, str]:
    """The text before the last `middle`, and after it."""
    before, found, after = text.rpartition(middle)
    if not found:
        raise _Unread
    return before, after


def _cut(text: str, marks: Sequence[str]) -> list[str]:
    """The pieces around the marks. Raises _Unread where one is missing."""
    if (found := pieces_around(text, marks)) is None:
        raise _Unread
    return found


def pieces_around(text: str, marks: Sequence[str]) -> list[str] | None:
    """The pieces of a text around these marks, each once and in this order; None where one is missing."""
    pieces = []
    for mark in marks:
        piece, found, text = text.partition(mark)
        if not found:
            return None
        pieces.append(piece)
    return [*pieces, text]
