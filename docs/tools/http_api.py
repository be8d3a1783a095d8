"""The reference of the daemon's HTTP API, as lines of Markdown, from the schema that the daemon itself gives."""

from __future__ import annotations

import json
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping
from contextlib import ExitStack
from itertools import groupby
from types import SimpleNamespace
from typing import Any

from api_examples import ERROR, Example, read_examples
from api_fields import ENDPOINTS, IGNORED, REFUSED, Endpoint
from api_fields import Field as Known
from api_schema import (
    COMMON,
    OPAQUE,
    Field,
    Schema,
    anchor,
    common_fields,
    curl,
    fields_of,
    is_bare,
    is_plain,
    json_of,
    lowered,
    name_of,
    named_in,
    names_of,
    pretty,
    references,
    said,
    title_of,
)
from fastapi.openapi.utils import get_openapi
from fastapi.routing import APIRoute

from edgetune.daemon.api.app import routes
from edgetune.daemon.api.errors import KINDS, STATUSES
from edgetune.daemon.api.metrics import Metrics
from edgetune.daemon.api.security import CODES, error_body, scope_of
from edgetune.daemon.keys import KeyScope
from edgetune.daemon.options import DaemonConfig
from edgetune.daemon.running import running_parts

FAULT = "A fault of the daemon, whose log has it."
GUARD = {401: ("invalid_api_key",),  # of refusals before a route
         403: ("wrong_host", "wrong_origin", "insufficient_scope")}
EVERYWHERE = ("id", "object", "created", "created_at")  # in answers
FEW = 3  # ignored or refused fields that are
METHODS = ("post", "get", "patch", "put", "delete", "head")
WITHOUT_EFFECT = {field.name for endpoint in ENDPOINTS for field in endpoint.inner
                  if field.becomes in (IGNORED, REFUSED)}
HEAD = """\
The routes of `edgetune serve`, generated from its schema, `/openapi.json`. In the examples
`URL=http://127.0.0.1:8642` and `JSON=-Hcontent-type:application/json`. If the daemon has keys, add
`-H "authorization: Bearer $EDGETUNE_KEY"`. A route says which scope its key must have; if it says none, that is
`admin`. A key of `feedback` may do what needs `answer`, too, and one of `admin` everything. The answers are those of
SmolLM2 and MiniLM; `...` stands for what is left out. A route without an example is asked by its method and path, as in
`curl -X DELETE $URL/v1/files/file-2`.

A field without a type is a string. A field that is not listed is refused with 400, and null is as good as absent. An
ignored field has no effect on the answer, and is named once in the log. What holds without a field is its default, or
stands in brackets.

Lists begin with the newest item. A list that comes in parts has `data` and `has_more`; of its query `limit` is the
number of items in a part at most, and `after` the last id of the part before. The own `id` of an answer, `object` and
`created` are not listed. Times are seconds since 1970, UTC. [Objects](#objects) that several routes have stand at the
end."""
STATES = """\
Give exactly one of `completion_id`, `messages` and `prompt`. Then give a `rating`, a `correction`, a `rejected` answer,
or several. Newer feedback on the same question replaces older feedback. Which feedback is learned depends on the
daemon's `--learn-method`: `sft` needs a right answer, `dpo` and `orpo` a right and a wrong one, `kto` either.

| state | meaning |
|---|---|
| `new` | It waits for the next job, or a job learns it now. |
| `used` | A job whose adapter passed the gate learned it, or it was held out there. |
| `aside` | The adapter that learned it was found worse. No later job learns it. |
| `withdrawn` | Newer feedback on the same question replaced it. |
| `counted` | It is counted only: the daemon's method cannot learn it. |

One question in five is held out: `held_out` is true, and the gate evaluates new adapters with it. What has `expires_in`
is never learned, and `counted`. [More](../how-to/learn-from-feedback.md)"""
GROUPS = {  # the heading of the routes that begin with a path; the longest path counts
    "/v1/chat": "Answers", "/v1/completions": "Answers", "/v1/responses": "Answers", "/v1/embeddings": "Answers",
    "/v1/classify": "Answers", "/v1/systemone": "Answers", "/v1/decisions": "Answers", "/v1/rerank": "Answers",
    "/tokenize": "Answers", "/detokenize": "Answers",
    "/v1/models": "Models", "/v1/files": "Files", "/v1/fine_tuning/jobs": "Jobs",
    "/v1/fine_tuning/alpha/graders": "Graders", "/v1/adapters": "Adapters", "/v1/feedback": "Feedback",
    "/v1/learn": "Feedback", "/v1/proposals": "Feedback", "/v1/drawn": "Feedback", "/v1/prompts": "Prompts",
    "/v1/vector_stores": "Vector stores", "/v1/documents": "Vector stores",
    "/v1/fleet": "Fleet", "/v1/base": "Fleet",
    "/api": "Ollama's API", "/": "The daemon and its device"}


class Reference:
    """The page. objects: names of schemas that stand at its end, in the order in which routes name them: those of
    several places. An object of one place stands there.
    """

    def __init__(self) -> None:
        self.whole = get_openapi(title="edgetune", version="", routes=routes())
        self.schemas: Mapping[str, Schema] = self.whole["components"]["schemas"]
        self.scopes = {f"{method} {route.path_format}": scope_of(route) for route in routes()
                       if isinstance(route, APIRoute) for method in route.methods}
        self.objects: list[str] = []
        self.listed: dict[str, list[Field]] = {}  # fields of requests by their route
        self.answered: dict[str, list[Field]] = {}  # and of answers that have their place there
        self.fates: dict[tuple[str, str], set[str]] = {}  # ignored and refused fields by route and title
        self.examples: dict[str, list[Example]] = defaultdict(list)
        for example in read_examples():
            self.examples[example.route].append(example)
        self.uses = self.count()

    def count(self) -> Counter[str]:
        """The number of places that name an object, by its title."""
        uses: Counter[str] = Counter()
        open_: list[str] = []
        for operation in (one for operations in self.whole["paths"].values() for one in operations.values()):
            body = self.resolved(json_of(operation.get("requestBody", {})))
            open_ += [*named_in(body), *set(references(json_of(operation["responses"].get("200", {}))))]
        seen: set[str] = set()
        while open_:
            name = open_.pop()
            if name.startswith("Page_"):
                open_.append(name.removeprefix("Page_").rstrip("_"))
                continue
            uses[title_of(name)] += 1
            if title_of(name) not in seen:
                seen.add(title_of(name))
                parent = self.parent(name)
                open_ += [*named_in(self.schemas[name]), *([parent] if parent else [])]
        return uses

    def lines(self) -> Iterator[str]:
        groups: dict[str, list[tuple[str, str, Schema]]] = {title: [] for title in GROUPS.values()}
        for start in sorted(GROUPS, key=list(GROUPS).index):
            for path, operations in self.whole["paths"].items():
                if start == start_of(path):
                    groups[GROUPS[start]] += [(method.upper(), path, operations[method]) for method in METHODS
                                              if method in operations]
        links = ", ".join(f"[{title}](#{anchor(title)})" for title in groups)
        yield from (HEAD, "", f"Routes: {links}.", "", *errors())
        for title, found in groups.items():
            yield from (f"## {title}", "")
            for method, path, operation in found:
                yield from self.route(method, path, operation)
        yield from ("## Objects", "")
        for name in self.objects:  # grows meanwhile
            yield from (f"### {title_of(name)}", "", *self.described(name), "")

    def route(self, method: str, path: str, operation: Schema) -> Iterator[str]:
        name = f"{method} {path}"
        scope = self.scopes[name]
        needed = {KeyScope.OPEN: " Needs no key.", KeyScope.ADMIN: ""}.get(scope, f" Scope: `{scope.word}`.")
        yield from (f"### {name}", "", said(operation["description"]) + needed, "")
        answer = json_of(operation["responses"].get("200", {}))
        for example in self.examples.get(name, []):
            if not (is_bare(example) and (example.to or self.is_linked(answer))):
                yield from example_lines(example)
        yield from self.query(operation)
        yield from self.request(name, path, operation)
        if name == "POST /v1/feedback":
            yield from (STATES, "")
        if path == "/metrics":
            yield from metrics()
        if "$ref" in answer:
            yield from (*self.answer(answer, name), "")

    def query(self, operation: Schema) -> Iterator[str]:
        found = [Field(one["name"], one["schema"], one.get("required", False), one.get("description", ""))
                 for one in operation.get("parameters", []) if one["in"] == "query"]
        own = [field for field in found if field.name not in ("after", "limit")]
        parts = [f"`{field.name}`" + (f" ({field.schema['default']})" if "default" in field.schema else "")
                 for field in found if field not in own]
        if parts:
            yield from (f"Query: {' and '.join(parts)}{'; also:' if own else '.'}", "")
        elif own:
            yield from ("Query:", "")
        yield from (*self.fields(own), *([""] if own else []))

    def request(self, name: str, path: str, operation: Schema) -> Iterator[str]:
        """The fields of a body: those with an effect in a list, others in a line each."""
        body = self.resolved(json_of(operation.get("requestBody", {})))
        endpoint = next((one for one in ENDPOINTS if one.path == path), None)
        fates = {field.name: field.becomes for field in endpoint.fields} if endpoint else {}
        limited = {field.name for field in endpoint.fields if field.becomes == REFUSED} if endpoint else set()
        fields = [field for field in fields_of(body) if fates.get(field.name) != IGNORED and field.name not in limited]
        text, common = common_fields(fields, self.listed)
        if common:
            yield from (f"{text}{'; also:' if len(common) < len(fields) else '.'}", "")
        self.listed[name] = fields
        own = sorted((field for field in fields if field not in common), key=lambda field: not field.needed)
        yield from (*self.fields(own), *([""] if own else []))
        if endpoint:
            yield from self.fate_lines(endpoint)

    def fate_lines(self, endpoint: Endpoint) -> Iterator[str]:
        """Names the fields that are ignored, and those that are refused but for a value; an earlier route's as its."""
        names = [*((field.name, field) for field in endpoint.fields),
                 *((f"{endpoint.within}.{field.name}", field) for field in endpoint.inner)]
        for title, fate in (("Ignored", IGNORED), ("Refused", REFUSED)):
            found = {named(name, field) for name, field in names if field.becomes == fate}
            other = next((path for (path, of), texts in self.fates.items()
                          if of == title and len(texts) >= FEW and texts <= found), None)
            self.fates[endpoint.path, title] = found
            texts = [f"those of [POST {other}](#{anchor(f'POST {other}')})"] if other else []
            known = self.fates[other, title] if other else set()
            texts += [text for name, field in names if (text := named(name, field)) in found - known]
            if texts:
                yield from (f"{title}: {'; '.join(texts)}.", "")

    def answer(self, answer: Schema, name: str) -> Iterator[str]:
        """The object of an answer: here, or a link to it, or that it is what was sent."""
        kind = name_of(answer)
        if kind.startswith("Page_") or self.is_shared(kind):
            yield f"Answer: {self.kind(answer)}."
        elif names_of(self.schemas[kind]) == [one.name for one in self.listed.get(name, [])]:
            yield "Answer: the same fields."
        else:
            fields = fields_of(self.schemas[kind])
            text, common = common_fields(fields, self.answered)
            self.answered[name] = fields
            yield from (f"Answer: {lowered(self.meaning(kind))}".strip(), "")
            if self.parent(kind):
                yield from self.own_fields(kind)
            else:
                yield from [f"- {lowered(text).replace('fields of', 'fields of the answer of', 1)}"] if common else []
                yield from self.fields([field for field in fields if field not in common], is_request=False)

    def is_linked(self, answer: Schema) -> bool:
        """Whether an answer is an object, or a list of objects, that stands at another place."""
        return self.is_shared(name_of(answer).removeprefix("Page_").rstrip("_"))

    def described(self, name: str) -> Iterator[str]:
        yield from (self.meaning(name), "", *self.own_fields(name))

    def own_fields(self, name: str, depth: int = 0, is_request: bool = False) -> Iterator[str]:
        fields = fields_of(self.schemas[name])
        if set(names_of(self.schemas[name])) >= WITHOUT_EFFECT:  # the requests that have the object name them
            fields = [field for field in fields if field.name not in WITHOUT_EFFECT]
        text, common = common_fields(fields, self.listed)
        fields = [field for field in fields if field not in common]
        parent = self.parent(name)
        if common:
            yield f"{'  ' * depth}- {lowered(text)}"
        elif parent:
            yield f"{'  ' * depth}- all fields of {self.link(parent)}"
            fields = fields[len(fields_of(self.schemas[parent])):]
        yield from self.fields(fields, depth, is_request)

    def meaning(self, name: str) -> str:
        return said(self.schemas[name].get("description", ""))

    def parent(self, name: str) -> str | None:
        """An object with whose fields those of another begin."""
        fields = fields_of(self.schemas[name])
        return next((other for other, schema in self.schemas.items() if COMMON <= len(
            schema.get("properties", {})) < len(fields) and fields_of(schema) == fields[:len(schema["properties"])]
            and not other.startswith("Page_")), None)

    def fields(self, fields: list[Field], depth: int = 0, is_request: bool = True) -> Iterator[str]:
        """A line for each field, those of an object of one place below it; one line for the fields of all objects, and
        for neighbours that mean the same.
        """
        dash = "  " * depth + "- "
        plain = [] if is_request and not depth else [field for field in fields if is_plain(field)]
        if shown := [field for field in plain if is_request or field.name not in EVERYWHERE]:
            yield dash + ", ".join(f"`{field.name}`" + (f" ({self.kind(field.schema)})" if "const" in field.schema
                                                       else "") for field in shown)
        for _, group in groupby((field for field in fields if field not in plain), key=lambda field: (
                self.kind(field.schema, peek=True), field.meaning, field.schema.get("default"), field.needed)):
            alike = list(group)
            yield dash + self.field_line(alike, is_request)
            if own := self.own_object(alike[0].schema):
                yield from self.own_fields(own, depth + 1, is_request)

    def field_line(self, alike: list[Field], is_request: bool) -> str:
        field = alike[0]
        default = field.schema.get("default")
        kind = self.kind(field.schema)
        kind = kind.removesuffix(" or null") if is_request else kind
        notes = [kind] if kind != "string" else []
        if field.needed and is_request:
            notes.append("required")
        names = ", ".join(f"`{one.name}`" for one in alike)
        has_default = default not in (None, "") and is_request and not isinstance(default, dict | list)
        meaning = said(field.meaning)
        if meaning and any(meaning in self.meaning(name) for name in references(field.schema)):
            meaning = ""  # stands at the object
        if own := self.own_object(field.schema):
            more = self.meaning(own)
            meaning = f"{meaning} {more.partition('. ')[2]}".strip() if meaning else more
        if has_default:
            notes.append(f"default `{json.dumps(default)}`")
        brackets = f" ({', '.join(notes)})" if notes else ""
        return f"{names}{brackets}{': ' if meaning else ''}{meaning}"

    def own_object(self, schema: Schema) -> str:
        """The object of a field that no other place has, in a list or not."""
        return next((name for name in references(schema) if not self.is_shared(name)), "")

    def is_shared(self, name: str) -> bool:
        return self.uses[title_of(name)] > 1 and not name.startswith("Page_")

    def kind(self, one: Schema, peek: bool = False) -> str:
        """The type of a field in words of JSON. peek: without a place for what it names."""
        if "anyOf" in one:
            kinds = [self.kind(part, peek) for part in one["anyOf"] if part.get("type") != "null"]
            null = " or null" if len(kinds) < len(one["anyOf"]) else ""
            return " or ".join(dict.fromkeys(kinds)) + null
        if "enum" in one:
            return "/".join(f"`{json.dumps(value)}`" for value in one["enum"])
        if "const" in one:
            return f"`{json.dumps(one['const'])}`"
        if "$ref" in one:
            return name_of(one) if peek else self.link(name_of(one))
        if one.get("type") == "array":
            return f"list of {self.kind(one.get('items', {}), peek)}"
        return str(one.get("type", "any"))

    def link(self, name: str) -> str:
        """A link to the description of an object, which is described from then on; of one place it is an object."""
        if name.startswith("Page_"):
            return f"a list of {self.link(name.removeprefix('Page_').rstrip('_'))} in parts"
        if name in OPAQUE or not self.is_shared(name):
            return "object"
        if title_of(name) not in map(title_of, self.objects):  # of a request and of an answer it is the same
            self.objects.append(name)
        title = title_of(name)
        return f"[{title}](#{title.lower().replace(' ', '-')})"

    def resolved(self, part: Schema) -> Schema:
        """A schema, found by its reference."""
        return self.schemas[name_of(part)] if name_of(part) else part


def example_lines(example: Example) -> Iterator[str]:
    if example.what:
        yield from (example.what, "")
    first, *more = curl(example)
    yield from ("```sh", first, *more, "```", "") if more else (f"`{first}`", "")
    if example.answer is not None:
        yield from ("```json", *pretty(example.answer), "```", "")


def lines() -> Iterator[str]:
    return Reference().lines()


def start_of(path: str) -> str:
    return max((start for start in GROUPS if path.startswith(start)), key=len)


def errors() -> Iterator[str]:
    yield from ("## Errors", "", "Every error has OpenAI's form. Of `/api/` it is Ollama's, `{\"error\": \"...\"}`. "
                "`message` says what was wrong, the value, the limit, and the way out.", "",
                "```json", *pretty(ERROR), "```", "", "| status | `type` | `code` | meaning |", "|---|---|---|---|",
                *(error_line(status, meaning) for status, meaning in sorted({**STATUSES, 500: FAULT}.items())), "",
                "429 comes with `Retry-After`. If an answer has begun, its stream ends with an event that has "
                "the error.", "")


def error_line(status: int, meaning: str) -> str:
    codes = {code for _, of_kind, code in KINDS if of_kind == status and code}
    codes |= {*GUARD.get(status, ()), *filter(None, [CODES.get(status)])}
    kind = error_body(status, "")["error"]["type"]
    return f"| {status} | {kind} | {', '.join(f'`{code}`' for code in sorted(codes)) or 'null'} | {meaning} |"


def named(name: str, field: Known) -> str:
    return f"`{name}` ({field.remark})" if field.remark else f"`{name}`"


def metrics() -> Iterator[str]:
    """The names of /metrics, from those of a service that does nothing, with a fleet without a folder."""
    number: dict[str, int] = defaultdict(int)
    service: Any = SimpleNamespace(
        name="", running=running_parts(DaemonConfig(fleet="/nowhere"), ExitStack()),
        adapters=SimpleNamespace(serving=None),
        health=lambda: {"status": "ok"},
        feedback=SimpleNamespace(counts=dict), store=SimpleNamespace(read=lambda _query: []),
        device=lambda: {"memory": {"budget": 0, "used": 0, "available": 0}, "temperature": None, "serving": number,
                        "answered": {}, "job": None})
    found = Metrics(service)
    yield from ("A name that ends in `_total` is a counter; the others are gauges, but for a histogram.", "")
    for family in [*found.collect(), *found.requests.describe(), *found.first.describe()]:
        total = "_total" if family.type == "counter" else ""
        kind = " (histogram)" if family.type == "histogram" else ""
        yield f"- `{family.name}{total}`{kind}: {family.documentation}"
    yield ""


