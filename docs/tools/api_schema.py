"""Reads the schema of the HTTP API: fields, names of objects, and the lines of an example."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

from api_examples import CUT, Example

Schema = Mapping[str, Any]
COMMON = 5  # fields that are worth a reference to another route
PLAIN = ("Its id.", "Seconds since 1970, UTC.")  # meanings of fields that the head of the page gives
WIDTH = 118  # letters of a line of code, at most
OPAQUE = ("Method", "Hyperparameters")  # objects with the options of other pages


class Field(NamedTuple):
    """A field of a request, a query or an object."""

    name: str
    schema: Schema
    needed: bool
    meaning: str


def common_fields(fields: list[Field], before: Mapping[str, list[Field]]) -> tuple[str, list[Field]]:
    """(a sentence, fields that an earlier route has), of the route with the most; few are as good as none."""
    name, found = max(((name, [field for field in fields if field in other]) for name, other in before.items()),
                      key=lambda pair: len(pair[1]), default=("", []))
    if len(found) < COMMON:
        return "", []
    other = [field for field in before[name] if field not in found and not is_plain(field)]
    link = f"fields of [{name}](#{anchor(name)})"
    if len(other) >= len(found):
        return f"Some {link}: {flat(found)}", found
    return f"All {link}{' but ' if other else ''}{flat(other)}", found


def flat(fields: list[Field]) -> str:
    return ", ".join(f"`{field.name}`" for field in fields)


def names_of(schema: Schema) -> list[str]:
    return list(schema.get("properties", {}))


def references(part: Any) -> Iterator[str]:
    """The names of the schemas to which a schema refers."""
    if isinstance(part, Mapping):
        if "$ref" in part and name_of(part) not in OPAQUE:
            yield name_of(part)
        part = list(part.values())
    if isinstance(part, list):
        for one in part:
            yield from references(one)


def named_in(schema: Schema) -> Iterator[str]:
    """The objects of its fields; those of a field that may be one of several count twice, as they need a heading."""
    for one in schema.get("properties", {}).values():
        found = set(references(one))
        yield from (name for name in found for _ in found)


def name_of(part: Schema) -> str:
    """The name of the schema that a reference names; "": it is none."""
    return str(part.get("$ref", "")).rpartition("/")[2]


def is_plain(field: Field) -> bool:
    """Whether the field is one that objects have, with the meaning that the head of the page gives."""
    return field.meaning in PLAIN or ("const" in field.schema and not field.meaning)


def is_bare(example: Example) -> bool:
    """Whether a request says no more than its method and path; how long a list may be does not count."""
    return example.body is None and not example.form and (
        "?" not in example.asked or example.asked.endswith("?limit=1"))


def lowered(text: str) -> str:
    return text[:1].lower() + text[1:]


def anchor(heading: str) -> str:
    """The anchor of a heading, as GitHub makes it."""
    return re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-")


def curl(example: Example) -> Iterator[str]:
    method = "" if example.method in ("GET", "POST") else f" -X {example.method}"
    if example.body is None and not example.form and example.method == "POST":
        method = " -X POST"
    place = f"'{example.asked}'" if "?" in example.asked else example.asked
    place = f"$URL{place}"
    more = "".join(f" -F {name}={value}" for name, value in example.form.items())
    more += f" -o {example.to}" if example.to else ""
    if example.body is None:
        yield f"curl{method} {place}{more}"
    else:
        asked = f"""curl{method} {place} $JSON -d '"""
        *body, last = pretty(example.body)
        yield from [asked, *body, f"{last}'"] if body or len(asked + last) >= WIDTH else [f"{asked}{last}'"]


def pretty(value: Any) -> list[str]:
    """JSON in lines that are no wider than WIDTH, with few of them, in which `...` stands for what is left out."""
    return [line.replace(f'"{CUT}": "{CUT}"', CUT).replace(f'"{CUT}"', CUT) for line in _wrapped(value)]


def _wrapped(value: Any, indent: int = 0) -> list[str]:
    line = json.dumps(value, ensure_ascii=False)
    if len(line) + indent <= WIDTH or not isinstance(value, dict | list) or not value:
        return [line]
    begin, end = ("{", "}") if isinstance(value, dict) else ("[", "]")
    pairs = [(f"{json.dumps(key)}: ", part) for key, part in value.items()] if isinstance(value, dict) else [
        ("", part) for part in value]
    lines = [""]
    for number, (name, part) in enumerate(pairs):
        first, *rest = _wrapped(part, indent + 1)
        comma = "," if number < len(pairs) - 1 else ""
        whole = [name + first, *rest]
        whole[-1] += comma
        if len(whole) == 1 and lines[-1] and len(lines[-1]) + len(whole[0]) < WIDTH - indent:
            lines[-1] += " " + whole[0]
        else:
            lines += whole
        if rest:
            lines.append("")
    first, *rest = filter(None, lines)
    whole = [begin + first, *(" " + line for line in rest)]
    return [*whole[:-1], whole[-1] + end]


def json_of(part: Schema) -> Schema:
    content = part.get("content", {})
    return next((kind["schema"] for name, kind in content.items() if name in
                 ("application/json", "multipart/form-data")), {})


def fields_of(part: Schema) -> list[Field]:
    needed = part.get("required", [])
    return [Field(name, one, name in needed, one.get("description", ""))
            for name, one in part.get("properties", {}).items()]


def title_of(name: str) -> str:
    """The heading of an object, from the name of its schema."""
    name = re.sub(r"-(Input|Output)$", "", name.rpartition("__")[2]).removesuffix("Object")
    return re.sub(r"(?<=[a-z])(?=[A-Z])", " ", name).capitalize()


def said(text: str) -> str:
    """Text for a cell of a table, in which names of pages are links."""
    text = " ".join(text.split()).replace("|", "\\|")
    return re.sub(r"\b(graders|methods|files|families)\.md\b", r"[\1](\1.md)", text)
