"""A JSON schema as a grammar in GBNF: whatever the grammar lets through is valid under the schema.

The reverse does not hold: keys come in the schema's order, without further ones, whitespace is what models write,
numbers have a length, and so have lists of constants. What a grammar cannot hold to is refused, so that nobody relies
on it. A key of our own, "x-any-order", lets an object's keys come in any order, if none is required.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from ..errors import UsageError
from . import json_numbers, json_pattern
from .json_numbers import SchemaPath
from .json_pattern import FORMATS, text, without_remark

Schema = Mapping[str, Any]
DEEPEST = 48  # schemas within one another
MAX_RULES = 4000
MAX_COMPARED = 256  # parts of allOf or oneOf, each of which is compared with all others
REPEATED = json_pattern.REPEATED
CONSTANTS = 32  # in a list without maxItems, or as many as there are: small models repeat one of few values for ever
ANY_ORDER = "x-any-order"
TYPES = ("object", "array", "string", "integer", "number", "boolean", "null")
REFUSED = ("not", "if", "then", "else", "dependentRequired", "dependentSchemas", "dependencies", "patternProperties",
           "propertyNames", "minProperties", "maxProperties", "contains", "multipleOf",
           "additionalItems", "unevaluatedItems", "$dynamicRef", "$recursiveRef")
OF_TYPE = {
    "object": ("properties", "required", "additionalProperties", "unevaluatedProperties"),
    "array": ("items", "prefixItems", "minItems", "maxItems", "uniqueItems"),
    "string": ("minLength", "maxLength", "pattern", "format"),
    "integer": ("minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum"),
    "number": ("minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum"),
    "boolean": (),
    "null": (),
}
ASSERTIONS = {"enum", "const", "anyOf", "oneOf", "allOf", *(name for names in OF_TYPE.values() for name in names)}

COMMON = {
    "ws": r'(" " | "\n" (" "{0,16} | "\t"{1,4}))?',
    "char": json_pattern.set_of(json_pattern.PLAIN) + r' | "\\" (["\\/bfnrt] | "u" ([0-9a-cefA-CEF] [0-9a-fA-F]{3} | '
            r'[dD] [0-7] [0-9a-fA-F]{2}))',
    "string": r'"\"" char* "\""',
    "integer": json_numbers.INTEGER,
    "number": json_numbers.NUMBER,
    "boolean": '"true" | "false"',
    "null": '"null"',
    "object": r'"{" ws (string ws ":" ws value ws ("," ws string ws ":" ws value ws)*)? "}"',
    "array": '"[" ws (value ws ("," ws value ws)*)? "]"',
    "value": "object | array | string | number | boolean | null",
}


def grammar_of(schema: Schema | bool) -> str:
    """The grammar of the JSON that is valid. Raises UsageError for what it cannot hold to."""
    return Rules(schema).grammar()


class Rules:
    """The rules of a schema, and of what stands around it: a call of a tool, say."""

    def __init__(self, schema: Schema | bool) -> None:
        self.root = schema
        self._bodies: dict[str, str] = {}
        self._refs: dict[str, str] = {}  # of the schema -> name of its rule
        self._depth = 0

    def grammar(self, before: str = "", after: str = "") -> str:
        """before, after: literal text around the JSON."""
        value = self.rule(self.root, SchemaPath())
        return self.whole(" ".join(part for part in (before and text(before), value, after and text(after)) if part))

    def whole(self, root: str) -> str:
        """The grammar with this body of its root."""
        return "\n".join(f"{name} ::= {body}" for name, body in {"root": root, **self._bodies, **COMMON}.items())

    def rule_of_other(self, schema: Schema, place: SchemaPath) -> str:
        """`rule`, of another schema, to whose parts it may refer."""
        own_root = self.root
        own_refs = self._refs
        self.root = schema
        self._refs = {}
        name = self.rule(schema, place)
        self.root = own_root
        self._refs = own_refs
        return name

    def rule(self, schema: Any, place: SchemaPath) -> str:
        """The name of the rule for a schema; place: where it is, for errors."""
        if schema is True or schema == {}:
            return "value"
        if not isinstance(schema, Mapping):
            raise UsageError(f"the schema{place} is {schema!r:.100}", "write an object with a type")
        if self._depth > DEEPEST:
            raise UsageError(f"the schema{place} has more than {DEEPEST} levels", "use fewer")
        self._depth += 1
        name = self._visit(schema, place)
        self._depth -= 1
        return name

    def named(self, body: str) -> str:
        """The name of a new rule. Raises UsageError where there are too many."""
        if len(self._bodies) >= MAX_RULES:
            raise UsageError(f"the schema has more than {MAX_RULES} parts, sets of different items counted with all "
                             "their orders", "make it smaller")
        for name, known in COMMON.items():
            if body in (name, known):
                return name
        name = f"r{len(self._bodies)}"
        self._bodies[name] = body
        return name

    def _visit(self, schema: Schema, place: SchemaPath) -> str:
        schema = without_remark(schema)
        for word in REFUSED:
            if word in schema and schema[word] not in (False, 0, None):
                raise _cannot(word, place)
        if "$ref" in schema:
            if ASSERTIONS & schema.keys() - {"$ref"}:
                raise _cannot("keys with $ref", place)
            return self._reference(schema["$ref"], place)
        if "allOf" in schema:
            return self.rule(self._merged(schema, place), place)
        for word in ("const", "enum"):
            if word in schema:
                return self.named(" | ".join(_literal(value) for value in _fitting(schema, word, place)))
        for word in ("anyOf", "oneOf"):
            if word in schema:
                return self._union(schema, word, place)
        return self._typed(schema, place)

    def _reference(self, ref: Any, place: SchemaPath) -> str:
        if ref not in self._refs:
            target = self._target(ref, place)
            name = self.named("")
            self._refs[ref] = name
            self._bodies[name] = self.rule(target, SchemaPath(parts=tuple(ref.split("/")[1:])))
        return self._refs[ref]

    def _target(self, ref: Any, place: SchemaPath) -> Any:
        target: Any = self.root
        if not isinstance(ref, str) or not (ref == "#" or ref.startswith("#/")):
            raise UsageError(f"the schema{place} refers to {ref!r:.100}", "refer to a part of the schema, by #/...")
        for part in ref.split("/")[1:]:
            part = part.replace("~1", "/").replace("~0", "~")
            if not isinstance(target, Mapping) or part not in target:
                raise UsageError(f"the schema{place} refers to {ref!r:.100}, which it does not have", "add it")
            target = target[part]
        return target

    def _followed(self, part: Any, place: SchemaPath) -> Any:
        """What a part refers to, where it is a reference."""
        for _ in range(DEEPEST):
            if not isinstance(part, Mapping) or "$ref" not in part:
                return part
            part = self._target(part["$ref"], place)
        raise UsageError(f"the schema{place} refers to itself", "let the reference lead to a type")

    def _merged(self, schema: Schema, place: SchemaPath) -> Schema:
        """allOf as one schema, where no two parts say something about the same."""
        merged: dict[str, Any] = {key: value for key, value in schema.items() if key != "allOf"}
        parts = _list(schema["allOf"], "allOf", place)
        _check_count(parts, "allOf", place)
        for part in parts:
            part = self._followed(part, place)
            if not isinstance(part, Mapping) or "allOf" in part:
                raise _cannot("such an allOf", place)
            for key, value in part.items():
                if key == "properties" and not set(value) & set(merged.get(key, {})):
                    merged[key] = {**merged.get(key, {}), **value}
                elif key == "required":
                    merged[key] = [*merged.get(key, ()), *value]
                elif key == "type" and sorted((value, merged.get(key)), key=str) == ["integer", "number"]:
                    merged[key] = "integer"
                elif key in {*ASSERTIONS, "type"} and key in merged and merged[key] != value:
                    raise _cannot(f"two of {key} in allOf", place)
                else:
                    merged[key] = value
        return merged

    def _union(self, schema: Schema, word: str, place: SchemaPath) -> str:
        parts = _list(schema[word], word, place)
        if word == "oneOf":
            _check_count(parts, word, place)
        if ASSERTIONS & schema.keys() - {word} or "type" in schema:
            raise _cannot(f"keys with {word}", place)
        if word == "oneOf" and not self._are_disjoint(parts, place):
            raise UsageError(f"the schema{place} has oneOf of parts that may both hold", "use anyOf, or give each "
                             "object a required key with another const")
        return self.named(" | ".join(self.rule(part, place / word / i) for i, part in enumerate(parts)))

    def _are_disjoint(self, parts: Sequence[Any], place: SchemaPath) -> bool:
        """Whether a type or the constant of a required key tells all apart."""
        kinds = [self._tags(part, place) for part in parts]
        return all(any(a.get(key, set()) and b.get(key, set()) and not a[key] & b[key] for key in a.keys() & b.keys())
                   for i, a in enumerate(kinds) for b in kinds[:i])

    def _tags(self, part: Any, place: SchemaPath) -> dict[str, set[str]]:
        """What a value of it has in any case: key -> possible values; "" for its type."""
        part = self._followed(part, place)
        if not isinstance(part, Mapping):
            return {}
        kinds = {"number" if kind == "integer" else kind for kind in _types(without_remark(part), place)}
        tags = {"": kinds, "=": _constants_of(part)}
        for key in part.get("required", ()) if kinds == {"object"} else ():
            tags[f".{key}"] = _constants_of(part.get("properties", {}).get(key))
        return tags

    def _typed(self, schema: Schema, place: SchemaPath) -> str:
        kinds = _types(schema, place)
        known = {name for kind in kinds for name in OF_TYPE[kind]}
        if strange := sorted((ASSERTIONS & schema.keys()) - known):
            raise UsageError(f"the schema{place} has {strange[0]} for another type", "leave it out, or name its type")
        make = {"object": self._object, "array": self._array, "string": self._string, "integer": json_numbers.integer,
                "number": json_numbers.number}
        bodies = [make[kind](schema, place) if kind in make and set(OF_TYPE[kind]) & schema.keys() else kind
                  for kind in kinds if kind != "integer" or "number" not in kinds]
        return self.named(" | ".join(bodies))

    def _object(self, schema: Schema, place: SchemaPath) -> str:
        properties = schema.get("properties", {})
        required = schema.get("required", [])
        more = schema.get("additionalProperties", schema.get("unevaluatedProperties", True))
        if not isinstance(properties, Mapping) or not isinstance(required, list):
            raise UsageError(f"the schema{place} has properties or required of another form", "write an object, a list")
        if more is False and set(required) - properties.keys():
            raise UsageError(f"the schema{place} requires a key that it does not allow", "add it to properties")
        properties = {**properties, **{key: more for key in required if key not in properties}}
        if not properties:
            if more is False:
                return r'"{" ws "}"'
            pair = self.named(f'string ws ":" ws {self.rule(more, place / "additionalProperties")} ws')
            return f'"{{" ws ({pair} ("," ws {pair})*)? "}}"'
        if schema.get(ANY_ORDER):
            return self._unordered(properties, required, more, place)
        rest = '"}"'  # after all keys; after a comma, and without one before
        first = '"}"'
        for key in reversed(properties):
            pair = self._pair(properties, key, place)
            behind = self.named(rest)
            if key in required:
                first = f"{pair} {behind}"
                rest = f'"," ws {pair} {behind}'
            else:
                first = f"{pair} {behind} | {self.named(first)}"
                rest = f'"," ws {pair} {behind} | {behind}'
        return f'"{{" ws ({first})'

    def _unordered(self, properties: Schema, required: Sequence[str], more: Any, place: SchemaPath) -> str:
        """Keys in any order; one that comes twice counts as it comes last."""
        if required or more is not False:
            raise _cannot(f"{ANY_ORDER} and {'required' if required else 'additionalProperties'}", place)
        pair = self.named(" | ".join(self._pair(properties, key, place) for key in properties))
        return f'"{{" ws ({pair} ("," ws {pair})*)? "}}"'

    def _pair(self, properties: Schema, key: str, place: SchemaPath) -> str:
        value = self.rule(properties[key], place / "properties" / key)
        return self.named(f'{text(json.dumps(key, ensure_ascii=False))} ws ":" ws {value} ws')

    def _array(self, schema: Schema, place: SchemaPath) -> str:
        if schema.get("uniqueItems"):
            return self._set(schema, place)
        firsts = schema.get("prefixItems", [])
        items = schema.get("items", True)
        if isinstance(items, list):  # as drafts before 2020-12 had it
            firsts, items = items, False
        least, most = _bounds(schema, "minItems", "maxItems", place)
        if most is None and (count := self._constants(items, place)):
            most = max(least, count, CONSTANTS)
        firsts = _list(firsts, "prefixItems", place) if firsts else ()
        names = [self.rule(part, place / "prefixItems" / i) for i, part in enumerate(firsts)]
        if items is False:
            most = len(names) if most is None else min(most, len(names))
        if most is not None and most < least:
            raise UsageError(f"the schema{place} asks for more items than it allows", "give each item a schema")
        if names:  # as many as must be, or all of them
            names = names[:most]
            least = max(least - len(names), 0)
            most = None if most is None else most - len(names)
        if items is False or most == 0:
            return f'"[" ws {" ".join(_comma(names))} "]"'
        item = self.named(f"{self.rule(items, place / 'items')} ws")
        again = f'("," ws {item})'
        if names:
            return f'"[" ws {" ".join(_comma(names))} {_repeated(again, least, most)} "]"'
        some = f"{item} {_repeated(again, max(least - 1, 0), None if most is None else most - 1)}"
        return f'"[" ws {some} "]"' if least else f'"[" ws ({some})? "]"'

    def _constants(self, schema: Any, place: SchemaPath) -> int:
        """The number of values, if the schema lists them: constants, or true, false and null; else 0."""
        schema = self._followed(schema, place)
        union = schema.get("anyOf", schema.get("oneOf")) if isinstance(schema, Mapping) else None
        parts = [self._followed(part, place) for part in union] if isinstance(union, list) else [schema]
        counts = [_count_of(part) for part in parts]
        return sum(counts) if all(counts) else 0

    def _set(self, schema: Schema, place: SchemaPath) -> str:
        """Items that differ: some of the constants of an enum, in its order."""
        items = self._followed(schema.get("items"), place)
        word = next((word for word in ("enum", "const") if isinstance(items, Mapping) and word in items), None)
        if word is None or "prefixItems" in schema:
            raise _cannot("uniqueItems of items without an enum", place)
        assert isinstance(items, Mapping)
        # once each, as JSON takes them for equal: 1 and 1.0 are, 1 and true are not
        values = [*{json.dumps(_plain(value), sort_keys=True): value
                    for value in reversed(_fitting(items, word, place / "items"))}.values()][::-1]
        least, most = _bounds(schema, "minItems", "maxItems", place)
        if least > len(values):
            raise UsageError(f"the schema{place} asks for {least} different items of {len(values)}", "lower minItems")
        if most == 0:
            return '"[" ws "]"'
        highest = most or max(least, 1)  # from here on it does not matter how many there are
        rest = [self.named('"]"') if count >= least else "" for count in range(highest + 1)]  # "": no way to the end
        for value in reversed(values):
            rest = [self._rest_of_set(value, count, rest, most) for count in range(highest + 1)]
        return f'"[" ws {rest[0]}'

    def _rest_of_set(self, value: Any, count: int, behind: Sequence[str], most: int | None) -> str:
        """The rule for what may follow `count` items of a set, this value or what comes after it; "" for nothing."""
        ways = [behind[count]] if behind[count] else []
        after = behind[min(count + 1, len(behind) - 1)]
        if after and (most is None or count < most):
            comma = '"," ws ' if count else ""
            ways.append(f"{comma}{_literal(value)} ws {after}")
        return self.named(" | ".join(ways)) if ways else ""

    def _string(self, schema: Schema, place: SchemaPath) -> str:
        pattern = schema.get("pattern")
        if (wanted := schema.get("format")) is not None:
            if pattern is not None or wanted not in FORMATS:
                raise UsageError(f"the schema{place} has format {wanted!r:.100}" + " with pattern" * bool(pattern),
                                 f"leave it out; known are {', '.join(FORMATS)}")
            pattern = FORMATS[wanted]
        least, most = _bounds(schema, "minLength", "maxLength", place)
        if pattern is None:
            return rf'"\"" {_repeated("char", least, most)} "\""'
        if not isinstance(pattern, str):
            raise UsageError(f"the schema{place} has a pattern that is no text", "write a regular expression")
        if "minLength" in schema or "maxLength" in schema:
            raise _cannot("a length with pattern or format", place)
        body = self.named(json_pattern.rule_of(pattern, "char"))
        return rf'"\"" {body} "\""'


def _fitting(schema: Schema, word: str, place: SchemaPath) -> list[Any]:
    """The constants of const or enum that are of the schema's type."""
    values = [schema["const"]] if word == "const" else _list(schema["enum"], "enum", place)
    if ASSERTIONS & schema.keys() - {word}:
        raise _cannot(f"keys with {word}", place)
    kinds = _types(schema, place)
    fitting = [value for value in values if any(_is(value, kind) for kind in kinds)]
    if not fitting:
        raise UsageError(f"the schema{place} allows no value", f"give {word} a value of its type")
    return fitting


def _plain(value: Any) -> Any:
    """Writes whole numbers as such."""
    if isinstance(value, dict):
        return {key: _plain(part) for key, part in value.items()}
    if isinstance(value, list):
        return [_plain(part) for part in value]
    return int(value) if isinstance(value, float) and value.is_integer() else value


def _literal(value: Any) -> str:
    return text(json.dumps(value, ensure_ascii=False))


def _cannot(what: str, place: SchemaPath) -> UsageError:
    return UsageError(f"the schema{place} has {what}, to which a grammar cannot hold", "leave it out")


def _list(value: Any, word: str, place: SchemaPath) -> Sequence[Any]:
    if not isinstance(value, list) or not value:
        raise UsageError(f"the schema{place} has {word} {value!r:.60}", "write a list that is not empty")
    return value


def _check_count(parts: Sequence[Any], word: str, place: SchemaPath) -> None:
    if len(parts) > MAX_COMPARED:
        raise UsageError(f"the schema{place} has {word} of {len(parts)} parts", f"use at most {MAX_COMPARED}")


def _types(schema: Schema, place: SchemaPath) -> list[str]:
    given = schema.get("type")
    if given is None:
        told = [kind for kind, words in OF_TYPE.items() if set(words) & schema.keys() and kind != "integer"]
        return told if told and not {"enum", "const"} & schema.keys() else [kind for kind in TYPES if kind != "integer"]
    kinds = given if isinstance(given, list) else [given]
    if not kinds or any(kind not in TYPES for kind in kinds):
        raise UsageError(f"the schema{place} has type {given!r:.100}", f"choose from {', '.join(TYPES)}")
    return list(dict.fromkeys(kinds))


def _is(value: Any, kind: str) -> bool:
    if kind in ("integer", "number"):
        whole = isinstance(value, int) or (isinstance(value, float) and value.is_integer())
        return not isinstance(value, bool) and (whole or (kind == "number" and isinstance(value, float)))
    of = {"object": dict, "array": list, "string": str, "boolean": bool, "null": type(None)}[kind]
    return isinstance(value, of)


def _count_of(schema: Any) -> int:
    """The number of values that a schema without references lists; 0 where it lists none."""
    if not isinstance(schema, Mapping):
        return 0
    if isinstance(values := schema.get("enum"), list):
        return len(values)
    return 1 if "const" in schema else {"boolean": 2, "null": 1}.get(str(schema.get("type")), 0)


def _constants_of(schema: Any) -> set[str]:
    if not isinstance(schema, Mapping):
        return set()
    values = schema.get("enum", [schema["const"]] if "const" in schema else [])
    return {json.dumps(value) for value in values}


def _bounds(schema: Schema, low: str, high: str, place: SchemaPath) -> tuple[int, int | None]:
    least = schema.get(low, 0)
    most = schema.get(high)
    for value in (least, 0 if most is None else most):
        if type(value) is not int or value < 0:
            raise UsageError(f"the schema{place} has {low} or {high} {value!r:.60}", "write a whole number, 0 or more")
    if least > REPEATED or (most is not None and most < least):
        raise UsageError(f"the schema{place} has {low} {least}", f"use at most {REPEATED}, and no more than {high}")
    return least, None if most is None else min(most, REPEATED)


def _repeated(name: str, least: int, most: int | None) -> str:
    return f"{name}{{{least},{'' if most is None else most}}}" if (least, most) != (0, None) else f"{name}*"


def _comma(names: Sequence[str]) -> list[str]:
    return [f'"," ws {name} ws' if i else f"{name} ws" for i, name in enumerate(names)]
