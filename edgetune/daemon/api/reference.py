"""/openapi.json, and /docs: what it says, as a page of HTML alone: no script, and nothing from elsewhere."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fastapi import APIRouter, Request
from fastapi.responses import HTMLResponse, JSONResponse
from starlette.responses import Response

from ...version import __version__
from .errors import of_type
from .policy import policy_of

PAGE = Path(__file__).parents[1] / "page" / "docs.html"
GROUPS = (("/v1/", "OpenAI's calls, and ours beyond them"), ("/api/", "Ollama's calls"), ("/", "The daemon"))
router = APIRouter()


@dataclass(frozen=True)
class Row:
    """A line of a table. kinds: each a word and, where it has one, the name of its shape."""

    name: str
    kinds: list[tuple[str, str]]
    meaning: str
    required: bool = False


@router.get("/openapi.json", include_in_schema=False)
def show_schema(request: Request) -> Response:
    """Made and written beside the event loop, as /docs is: others are answered meanwhile."""
    return JSONResponse(request.app.openapi())


@router.get("/docs", response_class=Response, responses=of_type("text/html"))
def show_docs(request: Request) -> Response:
    """This page."""
    state = request.app.state
    if not hasattr(state, "docs"):
        state.docs = _page(request.app.openapi())
    html, policy = state.docs
    return HTMLResponse(html, headers={"Content-Security-Policy": policy})


def _page(schema: dict[str, Any]) -> tuple[str, str]:
    """(HTML, its policy)"""
    from jinja2 import Environment
    template = Environment(autoescape=True).from_string(PAGE.read_text("utf-8"))
    calls = list(_calls(schema))
    groups: list[tuple[str, list[dict[str, Any]]]] = []
    for prefix, title in GROUPS:
        groups.append((title, [call for call in calls if call["path"].startswith(prefix)]))
        calls = [call for call in calls if not call["path"].startswith(prefix)]
    shapes = [{"name": name, "meaning": _clause(shape), "fields": _fields(shape)}
              for name, shape in schema["components"]["schemas"].items()]
    html = template.render(version=__version__, keyed="security" in schema, shapes=shapes,
                           groups=[(title, listed) for title, listed in groups if listed])
    return html, policy_of(html)


def _calls(schema: dict[str, Any]) -> Iterator[dict[str, Any]]:
    for path, operations in schema["paths"].items():
        for method, operation in operations.items():
            body = operation.get("requestBody", {}).get("content", {})
            body_type = next(iter(body), "")
            inner = _resolved(schema, body[body_type]["schema"]) if body else {}
            yield {"id": operation["operationId"], "method": method.upper(), "path": path,
                   "summary": operation["summary"], "meaning": operation.get("description", ""), "body_type": body_type,
                   "body": _fields(inner), "answers": list(_answers(operation)),
                   "parameters": [Row(each["name"], _kinds(each["schema"]), each.get("description", ""),
                                      each.get("required", False)) for each in operation.get("parameters", [])]}


def _answers(operation: dict[str, Any]) -> Iterator[Row]:
    for status, answer in sorted(operation["responses"].items()):
        kinds: list[tuple[str, str]] = []
        for media, content in answer.get("content", {}).items():
            kinds += _kinds(content["schema"]) if media == "application/json" else [(media, "")]
        yield Row(status, kinds, answer.get("description", ""))


def _resolved(schema: dict[str, Any], part: dict[str, Any]) -> dict[str, Any]:
    name = part.get("$ref", "").rpartition("/")[2]
    found: dict[str, Any] = schema["components"]["schemas"][name] if name else part
    return found


def _fields(shape: dict[str, Any]) -> list[Row]:
    required = shape.get("required", [])
    return [Row(name, _kinds(part), part.get("description", ""), name in required)
            for name, part in shape.get("properties", {}).items()]


def _kinds(part: dict[str, Any]) -> list[tuple[str, str]]:
    """What a value may be, in words."""
    if "$ref" in part:
        name = part["$ref"].rpartition("/")[2]
        return [(name, name)]
    if branches := part.get("anyOf") or part.get("oneOf"):
        return list(dict.fromkeys(kind for branch in branches for kind in _kinds(branch)))
    if "const" in part or "enum" in part:
        return [(repr(value).replace("'", '"'), "") for value in part.get("enum", [part.get("const")])]
    if part.get("type") == "array":
        return [(f"list of {word}", shape) for word, shape in _kinds(part.get("items", {}))]
    return [(part.get("type", "anything") + _limits(part), "")]


def _limits(part: dict[str, Any]) -> str:
    low = part.get("minimum", part.get("exclusiveMinimum"))
    high = part.get("maximum", part.get("exclusiveMaximum"))
    if low is None and high is None:
        return ""
    if high is None:
        return f" from {low:g}"
    return f" to {high:g}" if low is None else f" from {low:g} to {high:g}"


def _clause(shape: dict[str, Any]) -> str:
    """The first sentence of a description."""
    return str(shape.get("description", "")).split("\n\n")[0]
