"""The reference of the daemon's HTTP API, as lines of Markdown, from the schema that the daemon itself gives."""

from __future__ import annotations

import json
import re
from collections import defaultdict
from collections.abc import Iterator, Mapping
from contextlib import ExitStack
from types import SimpleNamespace
from typing import Any, NamedTuple

from api_examples import ERROR, EXAMPLES, Example
from api_fields import ENDPOINTS, IGNORED, REFUSED, Endpoint
from api_fields import Field as Known
from fastapi.openapi.utils import get_openapi

from edgetune.daemon.api.app import routes
from edgetune.daemon.api.errors import KINDS, STATUSES
from edgetune.daemon.api.metrics import Metrics
from edgetune.daemon.api.security import CODES, error_body
from edgetune.daemon.options import DaemonConfig
from edgetune.daemon.running import running_parts

Schema = Mapping[str, Any]
FAULT = "A fault of the daemon, whose log has it."
GUARD = {401: ("invalid_api_key",), 403: ("wrong_host", "wrong_origin")}  # of refusals before a route
COMMON = 5  # fields that are worth a reference to another route
WIDTH = 118  # letters of a line of code, at most
METHODS = ("post", "get", "patch", "put", "delete", "head")
OPAQUE = ("Method", "Hyperparameters")  # objects with the options of other pages
HEAD = """\
The routes of `edgetune serve`, generated from its schema, `/openapi.json`. In the examples
`URL=http://127.0.0.1:8642`. Where the daemon has keys, add `-H "authorization: Bearer $EDGETUNE_KEY"`; `/`,
`/healthz` and `/health` need none. A test puts each example to a daemon. Answers are shortened; [objects](#objects)
have all fields.

A field that is not listed is refused with 400, and null is as good as absent. An ignored field has no effect on the
answer, and is named once in the log. Lists begin with the newest item; `after` takes the last id of a part."""
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

One question in five is held out: `held_out` is true, and the gate evaluates new adapters with it. With `--recall`, the
default, an exact repeat of a corrected question is answered as corrected until a job has learned it; with an encoder
in `--embeddings` also one in other words (`--recall-like`). What has `expires_in` is never learned, and `counted`."""
GROUPS = {  # the heading of the routes that begin with a path; the longest path counts
    "/v1/chat": "Answers", "/v1/completions": "Answers", "/v1/responses": "Answers", "/v1/embeddings": "Answers",
    "/v1/classify": "Answers", "/v1/rerank": "Answers", "/tokenize": "Answers", "/detokenize": "Answers",
    "/v1/models": "Models", "/v1/files": "Files", "/v1/fine_tuning/jobs": "Jobs",
    "/v1/fine_tuning/alpha/graders": "Graders", "/v1/adapters": "Adapters", "/v1/feedback": "Feedback",
    "/v1/learn": "Feedback", "/v1/proposals": "Feedback", "/v1/prompts": "Prompts",
    "/v1/drawn": "Feedback",
    "/v1/fleet": "Fleet", "/v1/base": "Fleet",
    "/api": "Ollama's API", "/": "The daemon and its device"}


class Field(NamedTuple):
    """A field of a request, a query or an object."""

    name: str
    schema: Schema
    needed: bool
    meaning: str


class Reference:
    """The page. objects: names of schemas that are described at its end, in the order in which routes name them."""

    def __init__(self) -> None:
        self.whole = get_openapi(title="edgetune", version="", routes=routes())
        self.objects: list[str] = []
        self.listed: dict[str, list[Field]] = {}  # fields of requests by their route

    def lines(self) -> Iterator[str]:
        groups: dict[str, list[tuple[str, str, Schema]]] = {title: [] for title in GROUPS.values()}
        for path, operations in self.whole["paths"].items():
            groups[group_of(path)] += [(method.upper(), path, operations[method]) for method in METHODS
                                       if method in operations]
        yield from (HEAD, "", *contents(groups), *errors())
        for title, found in groups.items():
            yield from (f"## {title}", "")
            for method, path, operation in found:
                yield from self.route(method, path, operation)
        yield from ("## Objects", "")
        for name in self.objects:  # grows meanwhile
            yield from self.object(name)

    def route(self, method: str, path: str, operation: Schema) -> Iterator[str]:
        name = f"{method} {path}"
        yield from (f"### {name}", "", said(operation["description"]), "")
        for example in EXAMPLES:
            if example.route == name:
                yield from (example.what, "", "```sh", *curl(example), "```", "")
                if example.answer is not None:
                    yield from ("```json", *pretty(example.answer), "```", "")
        yield from self.table("query", [
            Field(one["name"], one["schema"], one.get("required", False), one.get("description", ""))
            for one in operation.get("parameters", []) if one["in"] == "query"])
        yield from self.request(path, operation)
        if name == "POST /v1/feedback":
            yield from (STATES, "")
        if path == "/metrics":
            yield from metrics()
        answer = json_of(operation["responses"].get("200", {}))
        if "$ref" in answer:
            yield from (f"Answer: {self.kind(answer)}.", "")

    def request(self, path: str, operation: Schema) -> Iterator[str]:
        """The fields of a body: those with an effect in a table, others in a line each."""
        body = self.resolved(json_of(operation.get("requestBody", {})))
        endpoint = next((one for one in ENDPOINTS if one.path == path), None)
        fates = {field.name: field.becomes for field in endpoint.fields} if endpoint else {}
        limited = {field.name for field in endpoint.fields if field.becomes == REFUSED} if endpoint else set()
        fields = [field for field in fields_of(body) if fates.get(field.name) != IGNORED and field.name not in limited]
        name, common = self.common(fields)
        if common:
            names = ", ".join(f"`{field.name}`" for field in common)
            yield from (f"The same fields as in [{name}](#{anchor(name)}): {names}. And:", "")
        self.listed[f"POST {path}"] = fields
        yield from self.table("field", [field for field in fields if field not in common])
        if endpoint:
            yield from fate_lines(endpoint)

    def common(self, fields: list[Field]) -> tuple[str, list[Field]]:
        """(an earlier route, its fields among these), of the route that has the most; few are as good as none."""
        found = max(((name, [field for field in fields if field in other]) for name, other in self.listed.items()),
                    key=lambda pair: len(pair[1]), default=("", []))
        return found if len(found[1]) >= COMMON else ("", [])

    def object(self, name: str) -> Iterator[str]:
        schema = self.whole["components"]["schemas"][name]
        fields = fields_of(schema)
        yield from (f"### {title_of(name)}", "", said(schema.get("description", "")), "")
        parent = next((other for other in self.objects if COMMON <= self.size(other) < len(fields) and fields_of(
            self.whole["components"]["schemas"][other]) == fields[:self.size(other)]), None)
        if parent:
            yield from (f"It has all fields of {self.link(parent)}, and:", "")
            fields = fields[self.size(parent):]
        yield from self.table("field", fields, is_request=False)

    def size(self, name: str) -> int:
        return len(self.whole["components"]["schemas"][name].get("properties", {}))

    def table(self, title: str, fields: list[Field], is_request: bool = True) -> Iterator[str]:
        if not fields:
            return
        yield from (f"| {title} | type | meaning |", "|---|---|---|")
        if is_request:
            fields = sorted(fields, key=lambda field: not field.needed)
        for field in fields:
            default = field.schema.get("default")
            notes = ["required"] if field.needed and is_request else []
            if default not in (None, "") and is_request and not isinstance(default, dict | list):
                notes.append(f"default `{json.dumps(default)}`")
            meaning = f"{said(field.meaning)} {'(' + ', '.join(notes) + ')' if notes else ''}".strip()
            kind = self.kind(field.schema)
            yield f"| `{field.name}` | {kind.removesuffix(' or null') if is_request else kind} | {meaning} |"
        yield ""

    def kind(self, one: Schema) -> str:
        """The type of a field in words of JSON."""
        if "anyOf" in one:
            kinds = [self.kind(part) for part in one["anyOf"] if part.get("type") != "null"]
            null = " or null" if len(kinds) < len(one["anyOf"]) else ""
            return " or ".join(dict.fromkeys(kinds)) + null
        if "enum" in one:
            return ", ".join(f"`{json.dumps(value)}`" for value in one["enum"])
        if "const" in one:
            return f"`{json.dumps(one['const'])}`"
        if "$ref" in one:
            return self.link(one["$ref"].rpartition("/")[2])
        if one.get("type") == "array":
            return f"list of {self.kind(one.get('items', {}))}"
        return str(one.get("type", "any"))

    def link(self, name: str) -> str:
        """A link to the description of an object, which is described from then on."""
        if name in OPAQUE:
            return "object"
        if name.startswith("Page_"):
            return f"a list of {self.link(name.removeprefix('Page_').rstrip('_'))}: `data`, and `has_more`"
        if title_of(name) not in map(title_of, self.objects):  # of a request and of an answer it is the same
            self.objects.append(name)
        title = title_of(name)
        return f"[{title}](#{title.lower().replace(' ', '-')})"

    def resolved(self, part: Schema) -> Schema:
        """A schema, found by its reference."""
        name = part.get("$ref", "").rpartition("/")[2]
        found: Schema = self.whole["components"]["schemas"][name] if name else part
        return found


def lines() -> Iterator[str]:
    return Reference().lines()


def group_of(path: str) -> str:
    return GROUPS[max((start for start in GROUPS if path.startswith(start)), key=len)]


def contents(groups: Mapping[str, list[tuple[str, str, Schema]]]) -> Iterator[str]:
    yield from ("| | routes |", "|---|---|")
    for title, found in groups.items():
        links = [f"[{method} {path}](#{anchor(f'{method} {path}')})" for method, path, _ in found]
        yield f"| [{title}](#{anchor(title)}) | {', '.join(links)} |"
    yield ""


def anchor(heading: str) -> str:
    """The anchor of a heading, as GitHub makes it."""
    return re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-")


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


def fate_lines(endpoint: Endpoint) -> Iterator[str]:
    """Names the fields that are ignored, and those that are refused but for a value."""
    names = [*((field.name, field) for field in endpoint.fields),
             *((f"{endpoint.within}.{field.name}", field) for field in endpoint.inner)]
    for title, fate in (("Ignored", IGNORED), ("Refused", REFUSED)):
        found = [named(name, field) for name, field in names if field.becomes == fate]
        if found:
            yield from (f"{title}: {'; '.join(found)}.", "")


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
    yield from ("| metric | type | meaning |", "|---|---|---|")
    for family in [*found.collect(), *found.requests.describe(), *found.first.describe()]:
        total = "_total" if family.type == "counter" else ""
        yield f"| `{family.name}{total}` | {family.type} | {family.documentation} |"
    yield ""


def curl(example: Example) -> Iterator[str]:
    method = "" if example.method in ("GET", "POST") else f" -X {example.method}"
    if example.is_upload:
        purpose = " -F purpose=fine-tune" if example.asked == "/v1/files" else ""
        yield f"curl -s $URL{example.asked}{purpose} -F file=@{example.sends}"
        return
    if example.body is None and example.method == "POST":
        method = " -X POST"
    place = f"'{example.asked}'" if "?" in example.asked else example.asked
    place = f"$URL{place}"
    more = " -o adapter.zip" if example.route.endswith("/download") else ""
    if example.body is None:
        yield f"curl -s{method} {place}{more}"
    else:
        yield f"curl -s{method} {place} -H 'content-type: application/json' -d '"
        *body, last = pretty(example.body)
        yield from (*body, f"{last}'")


def pretty(value: Any, indent: int = 0) -> list[str]:
    """JSON in lines that are no wider than WIDTH, with few of them."""
    line = json.dumps(value, ensure_ascii=False)
    if len(line) + indent <= WIDTH or not isinstance(value, dict | list) or not value:
        return [line]
    begin, end = ("{", "}") if isinstance(value, dict) else ("[", "]")
    pairs = [(f"{json.dumps(key)}: ", part) for key, part in value.items()] if isinstance(value, dict) else [
        ("", part) for part in value]
    lines = [""]
    for number, (name, part) in enumerate(pairs):
        first, *rest = pretty(part, indent + 1)
        comma = "," if number < len(pairs) - 1 else ""
        whole = [name + first, *rest]
        whole[-1] += comma
        if len(whole) == 1 and lines[-1] and len(lines[-1]) + len(whole[0]) < WIDTH - indent:
            lines[-1] += " " + whole[0]
        else:
            lines += whole
        if rest:
            lines.append("")
    return [begin, *(" " + line for line in lines if line), end]


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
