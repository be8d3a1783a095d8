"""JSON in the language of Go's templates: programs that write tools, and arguments of calls, as Python's json.dumps.

Ollama's own function `json` sorts keys, leaves no spaces and escapes <, and its templates get objects as maps, which
have no order. So a program here names each key at its place: those that tools always have, and those that the tools of
the rows had. Other ones follow in the order of the alphabet.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from graphlib import CycleError, TopologicalSorter
from typing import Any

PARAMETERS = ("type", "properties", "required")
SCHEMA = ("type", "description", "enum", "items", "anyOf")  # what Ollama keeps of a parameter
DEEPEST = 8  # levels that are indented; deeper ones stay on a line


@dataclass(frozen=True)
class Order:
    """The order of keys: of `parameters`, of a parameter's schema, and of the names of parameters and arguments."""

    parameters: Sequence[str] = PARAMETERS
    schema: Sequence[str] = SCHEMA
    names: Sequence[str] = ()


def order_of(tools: Iterable[Mapping[str, Any]]) -> Order:
    """The order that these tools have; where they contradict each other, that of the first."""
    parameters = [_mapping(tool.get("function", tool).get("parameters")) for tool in tools]
    properties = [_mapping(each.get("properties")) for each in parameters]
    schemas = [schema for each in properties for value in each.values() for schema in _schemas(value)]
    return Order(_merged([*map(list, parameters), []], PARAMETERS), _merged(map(list, schemas), SCHEMA),
                 _merged(map(list, properties), ()))


def _mapping(value: Any) -> Mapping[str, Any]:
    return value if isinstance(value, Mapping) else {}


def _schemas(value: Any) -> Iterable[Mapping[str, Any]]:
    """A parameter's schema and those within it."""
    if isinstance(value, Mapping):
        yield value
        inner = value.get("anyOf")
        for each in [value.get("items"), *(inner if isinstance(inner, list) else [])]:
            yield from _schemas(each)


def _merged(lists: Iterable[list[str]], usual: Sequence[str]) -> tuple[str, ...]:
    """The keys of all lists in their common order, `usual` ones that none has at the end; of these alone if given."""
    found = [[key for key in keys if not usual or key in usual] for keys in lists]
    before: TopologicalSorter[str] = TopologicalSorter()
    for keys in found:
        for earlier, key in zip([None, *keys], keys, strict=False):
            before.add(key, *([] if earlier is None else [earlier]))
    try:
        merged = list(before.static_order())
    except CycleError:
        merged = [key for keys in found for key in keys]
    return tuple(dict.fromkeys([*merged, *usual]))


# ---- what is written -------------------------------------------------------------------------------------------------


def as_written(tool: Mapping[str, Any], order: Order) -> dict[str, Any]:
    """An OpenAI tool as Ollama's templates get it and the programs here write it: without what is lost on the way."""
    function = tool.get("function", tool)
    parameters = function.get("parameters")
    written = {key: function[key] for key in ("name", "description") if function.get(key)}
    if isinstance(parameters, Mapping):
        written["parameters"] = {
            key: _ordered(parameters[key], order.names, lambda value: _property(value, order))
            if key == "properties" else parameters[key]
            for key in order.parameters if parameters.get(key) is not None}
    return {"type": tool.get("type", "function"), "function": written}


def arguments_as_written(arguments: Any, order: Order) -> Any:
    return _any(arguments, order.names)


def _property(value: Any, order: Order) -> Any:
    if not isinstance(value, Mapping):
        return {}
    kept = {key: value[key] for key in order.schema if value.get(key)}
    if "anyOf" in kept:
        kept["anyOf"] = [_property(each, order) for each in kept["anyOf"]]
    return kept | ({"items": _any(kept["items"], order.schema)} if "items" in kept else {})


def _any(value: Any, first: Sequence[str]) -> Any:
    if isinstance(value, list):
        return [_any(each, first) for each in value]
    return _ordered(value, first, lambda each: _any(each, first)) if isinstance(value, Mapping) else value


def _ordered(value: Mapping[str, Any], first: Sequence[str], inner: Any) -> dict[str, Any]:
    keys = [*(key for key in first if key in value), *sorted(key for key in value if key not in first)]
    return {key: inner(value[key]) for key in keys}


# ---- the programs that write it --------------------------------------------------------------------------------------


class GoJson:
    """Writes programs of Go's templates. indent: spaces a level, None: all on a line. `defines`: templates that the
    programs use, by their names.
    """

    def __init__(self, order: Order, indent: int | None) -> None:
        self.order = order
        self.indent = indent
        self.defines: dict[str, str] = {}

    def dumps(self, value: Any) -> str:
        return json.dumps(value, ensure_ascii=False, indent=self.indent)

    def tool(self, whole: bool) -> str:
        """The program for one of .Tools, at the dot. whole: as OpenAI writes it, else its function."""
        if not whole:
            return _with(".Function", self._function(0))
        function = _with(".Function", self._function(1))
        return self._fields([("", "type", _quoted(".Type")), ("", "function", function)], 0)

    def arguments(self) -> str:
        """The program for the arguments of one of .ToolCalls, at the dot."""
        return _with(".Function.Arguments", self._map("value", self.order.names, 0), "{}")

    def _function(self, depth: int) -> str:
        known = 'or .Parameters.Type (ne (json .Parameters.Properties) "null")'
        return self._fields([("", "name", _quoted(".Name")), (".Description", "description", _quoted(".Description")),
                             (known, "parameters", _with(".Parameters", self._parameters(depth + 1)))], depth)

    def _parameters(self, depth: int) -> str:
        properties = _with(".Properties", self._map("property", self.order.names, depth + 1), "{}")
        required = _with(".Required", self._list(_quoted("."), depth + 1), "[]")
        fields = {"type": (".Type", "type", _quoted(".Type")),
                  "properties": ('ne (json .Properties) "null"', "properties", properties),
                  "required": ('ne (json .Required) "null"', "required", required)}
        return self._fields([fields[key] for key in self.order.parameters], depth)

    def _property(self, depth: int) -> str:
        several = _with(".Type", self._list("{{ json . }}", depth + 1))
        kind = f"{{{{ if eq (len .Type) 1 }}}}{{{{ json (index .Type 0) }}}}{{{{ else }}}}{several}{{{{ end }}}}"
        enum = _with(".Enum", self._list(self._call("value", depth + 2), depth + 1))
        choices = _with(".AnyOf", self._list(self._call("property", depth + 2), depth + 1))
        fields = {"type": (".Type", "type", kind), "enum": (".Enum", "enum", enum),
                  "description": (".Description", "description", _quoted(".Description")),
                  "items": (".Items", "items", self._call("schema", depth + 1, ".Items")),
                  "anyOf": (".AnyOf", "anyOf", choices)}
        some = " ".join(condition for condition, _, _ in fields.values())
        written = self._fields([fields[key] for key in self.order.schema], depth)
        return f"{{{{ if or {some} }}}}{written}{{{{ else }}}}{{}}{{{{ end }}}}"

    def _call(self, kind: str, depth: int, dot: str = ".") -> str:
        """A call of the template that writes a kind of value: "property", or any; of "schema" its keys come first."""
        if self.indent is not None and depth > DEEPEST:
            return f"{{{{ json {dot} }}}}"
        name = kind if self.indent is None else f"{kind}{depth}"
        if name not in self.defines:
            self.defines[name] = ""  # it may call itself
            self.defines[name] = self._property(depth) if kind == "property" else self._value(kind, depth)
        return f'{{{{ template "{name}" {dot} }}}}'

    def _value(self, kind: str, depth: int) -> str:
        first = self.order.names if kind == "value" else self.order.schema
        return ('{{ $t := printf "%T" . }}{{ if eq $t "string" }}' + _quoted(".") + '{{ else if eq $t '
                '"map[string]interface {}" }}{{ if . }}' + self._map(kind, first, depth) + '{{ else }}{}{{ end }}'
                '{{ else if eq $t "[]interface {}" }}{{ if . }}' + self._list(self._call(kind, depth + 1), depth)
                + "{{ else }}[]{{ end }}{{ else }}{{ json . }}{{ end }}")

    def _fields(self, fields: Sequence[tuple[str, str, str]], depth: int) -> str:
        """An object of known keys: (condition, "" for always; key; the program of its value)."""
        some = f"$c{depth}"
        text = f"{{{{ {some} := false }}}}" + self._begin("{", depth)
        for condition, key, value in fields:
            each = f'{{{{ if {some} }}}}{self._comma(depth)}{{{{ end }}}}"{key}": {value}{{{{ {some} = true }}}}'
            text += f"{{{{ if {condition} }}}}{each}{{{{ end }}}}" if condition else each
        return text + self._end("}", depth)

    def _map(self, kind: str, first: Sequence[str], depth: int) -> str:
        """The object of a map at the dot, which is not empty: the keys of `first`, then all others."""
        inner = self._call(kind, depth + 1, "$v")
        entry = f"{{{{ if $c }}}}{self._comma(depth)}{{{{ end }}}}{_quoted('$k')}: {inner}{{{{ $c = true }}}}"
        text = "{{ $c := false }}" + self._begin("{", depth)
        for key in first:
            text += f"{{{{ range $k, $v := . }}}}{{{{ if eq $k {_text(key)} }}}}{entry}{{{{ end }}}}{{{{ end }}}}"
        named = " ".join(map(_text, first))
        other = f"{{{{ if not (eq $k {named}) }}}}{entry}{{{{ end }}}}" if first else entry
        return text + f"{{{{ range $k, $v := . }}}}{other}{{{{ end }}}}" + self._end("}", depth)

    def _list(self, inner: str, depth: int) -> str:
        """The list at the dot, which is not empty; inner: the program of an item, at the dot."""
        comma = f"{{{{ if $i }}}}{self._comma(depth)}{{{{ end }}}}"
        return f"{self._begin('[', depth)}{{{{ range $i, $e := . }}}}{comma}{inner}{{{{ end }}}}{self._end(']', depth)}"

    def _begin(self, bracket: str, depth: int) -> str:
        return f'{{{{ "{bracket}" }}}}{self._line(depth + 1)}'

    def _comma(self, depth: int) -> str:
        return ", " if self.indent is None else f",{self._line(depth + 1)}"

    def _end(self, bracket: str, depth: int) -> str:
        return f"{self._line(depth)}{bracket}"

    def _line(self, depth: int) -> str:
        return "" if self.indent is None else "\n" + " " * (self.indent * depth)


def _quoted(dot: str) -> str:
    """A text as JSON writes it. Unlike `json`, %q leaves < and all other letters that can be printed."""
    return f'{{{{ printf "%q" {dot} }}}}'


def _with(dot: str, program: str, otherwise: str = "") -> str:
    """A program for what is found there; otherwise: for what is empty."""
    return f"{{{{ with {dot} }}}}{program}{{{{ else }}}}{otherwise}{{{{ end }}}}"


def _text(key: str) -> str:
    return json.dumps(key, ensure_ascii=False)
