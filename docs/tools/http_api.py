"""The reference of the daemon's HTTP API, as lines of Markdown, from the schema that the daemon itself gives."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from typing import Any

from api_examples import EXAMPLES, Example
from fastapi.openapi.utils import get_openapi

from edgetune.daemon.api.app import routes
from edgetune.daemon.api.errors import STATUSES

Schema = Mapping[str, Any]
HEAD = """\
All routes of `edgetune daemon`. In the examples `URL=http://127.0.0.1:8642`. Where the daemon has keys, add
`-H "authorization: Bearer $EDGETUNE_KEY"`. `/openapi.json` is this page for programs.
`tests/daemon/test_api_examples.py` puts each example to a daemon.

Errors have OpenAI's form: `{"error": {"message": ..., "type": ..., "param": ..., "code": ...}}`."""
GROUPS = {  # the heading of the routes that begin with a path; the longest path counts
    "/v1/chat": "Answers", "/v1/completions": "Answers", "/v1/responses": "Answers", "/v1/embeddings": "Answers",
    "/v1/models": "Models", "/v1/files": "Files", "/v1/fine_tuning/jobs": "Jobs",
    "/v1/fine_tuning/alpha/graders": "Graders", "/v1/adapters": "Adapters", "/v1/feedback": "Feedback",
    "/v1/learn": "Feedback", "/v1/prompts": "Prompts", "/api": "Ollama's API", "/": "The daemon and its device"}
WIDTH = 120  # letters of a line of code, at most
METHODS = ("get", "post", "patch", "put", "delete", "head")
LISTED_ELSEWHERE = ("/v1/chat/completions", "/v1/completions", "/v1/responses")  # in requests.md


def group_of(path: str) -> str:
    return GROUPS[max((start for start in GROUPS if path.startswith(start)), key=len)]


def lines() -> Iterator[str]:
    yield from (*HEAD.splitlines(), "", "| status | meaning |", "|---|---|")
    yield from (f"| {status} | {meaning} |" for status, meaning in STATUSES.items())
    yield ""
    found = get_openapi(title="edgetune", version="", routes=routes())
    groups: dict[str, list[str]] = {title: [] for title in GROUPS.values()}
    for path, operations in found["paths"].items():
        for method in METHODS:
            if method in operations:
                groups[group_of(path)] += route_lines(found, method.upper(), path, operations[method])
    for title, of_group in groups.items():
        if of_group:
            yield from (f"## {title}", "", *of_group)


def route_lines(whole: Schema, method: str, path: str, operation: Schema) -> Iterator[str]:
    yield from (f"### {method} {path}", "")
    if text := operation.get("description", ""):
        yield from (" ".join(text.split()), "")
    for example in EXAMPLES:
        if example.route == f"{method} {path}":
            yield from (example.what, "", "```sh", *curl(example), "```", "")
    yield from table("query", [(one["name"], one["schema"], one.get("required", False), one.get("description", ""))
                               for one in operation.get("parameters", []) if one["in"] == "query"], whole)
    body = resolved(whole, json_of(operation.get("requestBody", {})))
    if body and path not in LISTED_ELSEWHERE:
        yield from table("request", fields_of(body), whole)
    answer = resolved(whole, json_of(operation["responses"].get("200", {})))
    if answer and path not in LISTED_ELSEWHERE:
        yield from table("response", fields_of(answer), whole)


def curl(example: Example) -> Iterator[str]:
    method = "" if example.method in ("GET", "POST") else f" -X {example.method}"
    if example.body is None and example.method == "POST":
        method = " -X POST"
    command = f"curl -s{method} $URL{example.asked}"
    if example.body is None:
        yield command
    else:
        line = json.dumps(example.body, ensure_ascii=False)
        body = line if len(line) <= WIDTH else json.dumps(example.body, indent=1, ensure_ascii=False)
        yield f"{command} -H 'content-type: application/json' -d '"
        yield f"{body}'"


def json_of(part: Schema) -> Schema:
    content = part.get("content", {})
    return next((kind["schema"] for name, kind in content.items() if name in
                 ("application/json", "multipart/form-data")), {})


def resolved(whole: Schema, part: Schema) -> Schema:
    """A schema behind its reference."""
    name = part.get("$ref", "").rpartition("/")[2]
    return whole["components"]["schemas"][name] if name else part


def fields_of(part: Schema) -> list[tuple[str, Schema, bool, str]]:
    """(name, schema, whether it must be given, meaning)"""
    needed = part.get("required", [])
    return [(name, one, name in needed, one.get("description", "")) for name, one in part.get("properties", {}).items()]


def table(title: str, fields: list[tuple[str, Schema, bool, str]], whole: Schema) -> Iterator[str]:
    if not fields:
        return
    yield from (f"| {title} | type | meaning |", "|---|---|---|")
    for name, one, needed, meaning in fields:
        default = one.get("default")
        notes = ["required"] if needed and title != "response" else []
        if default not in (None, "") and title != "response" and not isinstance(default, (dict, list)):
            notes.append(f"default `{str(default).lower() if isinstance(default, bool) else default}`")
        text = " ".join([re.sub(r"\s+", " ", meaning).replace("|", "\\|"), f"({', '.join(notes)})" if notes else ""])
        yield f"| `{name}` | {kind(whole, one)} | {text.strip()} |"
    yield ""


def kind(whole: Schema, one: Schema) -> str:
    """The type of a field in words of JSON."""
    if "anyOf" in one:
        kinds = [kind(whole, part) for part in one["anyOf"] if part.get("type") != "null"]
        null = " or null" if len(kinds) < len(one["anyOf"]) else ""
        return " or ".join(dict.fromkeys(kinds)) + null
    if "enum" in one:
        return ", ".join(f"`{value}`" for value in one["enum"])
    if "const" in one:
        return f"`{str(one['const']).lower() if isinstance(one['const'], bool) else one['const']}`"
    if "$ref" in one:
        target = resolved(whole, one)
        return kind(whole, target) if "enum" in target else "object"
    if one.get("type") == "array":
        return f"array of {kind(whole, one.get('items', {}))}"
    return str(one.get("type", "any"))
