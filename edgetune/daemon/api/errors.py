"""Errors as an HTTP status and OpenAI's error body, of one sentence; and JSON read strictly."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, get_args

from fastapi import FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from fastapi.routing import APIRoute
from pydantic import BaseModel
from pydantic_core import from_json
from starlette.exceptions import HTTPException
from starlette.routing import Match

from ...disk import refusal
from ...errors import (
    ContextLengthError,
    DataError,
    DiskError,
    EdgetuneError,
    Interrupted,
    LockedError,
    NotFoundError,
    TooLargeError,
    TooMuchError,
    UsageError,
)
from .security import CODES, error_body, error_for
from .shapes import Error

log = logging.getLogger("edgetune.daemon")
WORDS = {  # for types, by pydantic's names of what it found
    "string_type": "text", "int_type": "an integer", "int_parsing": "an integer", "int_from_float": "an integer",
    "int_parsing_size": "an integer", "float_type": "a number", "float_parsing": "a number",
    "finite_number": "a finite number", "bool_type": "true or false", "list_type": "a list", "dict_type": "an object",
    "model_type": "an object", "model_attributes_type": "an object",
}
KEY = "[key]"  # how pydantic ends the place of a key
LONGEST = 100  # characters of a name that are shown


class ParamError(EdgetuneError):
    """Something is wrong with a field of the request, which OpenAI's error names as `param`."""

    def __init__(self, error: EdgetuneError, param: str) -> None:
        super().__init__(error.what, error.hint)
        self.param = param


@contextmanager
def about(param: str) -> Iterator[None]:
    """Attributes the UsageErrors and DataErrors that are raised within to this field."""
    try:
        yield
    except (UsageError, DataError) as error:
        raise ParamError(error, param) from None


STATUSES = {
    400: "A field or its value is wrong.", 401: "The key is missing or wrong.",
    403: "A page of another origin asks, the Host is not this daemon's, or the key's scope does not allow it.",
    404: "Nothing has this name or id.",
    408: "The body came too slowly.", 413: "A body, a file or a text is too large.",
    415: "The body is packed in another way than gzip and zstd.",
    429: "Too many requests wait; ask again later.",
    503: "Too many bytes are in progress, another program holds the database, or the daemon stops.",
    507: "The disk is full, or refuses.",
}
RESPONSES: dict[int | str, dict[str, Any]] = {
    status: {"model": Error, "description": what} for status, what in STATUSES.items()}
KINDS: tuple[tuple[type[EdgetuneError], int, str | None], ...] = (  # the first one that fits counts
    (ContextLengthError, 400, "context_length_exceeded"),
    (NotFoundError, 404, "not_found"), (TooLargeError, 413, "too_much"), (TooMuchError, 429, "too_much"),
    (LockedError, 503, "locked"), (DiskError, 507, "disk"), (Interrupted, 503, "stopping"),
    (ParamError, 400, "invalid_value"), (EdgetuneError, 400, None))
METHODS = ("DELETE", "GET", "HEAD", "OPTIONS", "PATCH", "POST", "PUT")
BYTES_A_VALUE = 32  # of the largest body: each value that does not fit the schema costs a kilobyte to report


class _Json(Request):
    """Refuses JSON that Python's parser accepts: NaN, halves of surrogate pairs, unlimited nesting or value counts."""

    async def json(self) -> Any:
        body = await self.body()
        most = self.app.state.bodies.largest // BYTES_A_VALUE
        if body.count(b",") >= most:
            raise HTTPException(413, f"the body has more than {most} values, the most here; send fewer, or raise "
                                "--max-body")
        try:
            return from_json(body, allow_inf_nan=False)
        except ValueError as error:
            raise HTTPException(400, f"the body is no JSON: {error}") from None


class JsonRoute(APIRoute):
    def get_route_handler(self) -> Callable[[Request], Any]:
        handler = super().get_route_handler()

        async def strict(request: Request) -> Response:
            return await handler(_Json(request.scope, request.receive))

        return strict


def install(app: FastAPI) -> None:
    """Every error is answered with OpenAI's body."""

    async def answer(request: Request, error: Exception) -> Response:
        path = request.url.path
        headers = dict(getattr(error, "headers", None) or {})
        if isinstance(error, HTTPException) and error.status_code in (404, 405):  # of the router: ours is NotFoundError
            error.detail = f"there is no {request.method} {path!r:.200}; /openapi.json lists what exists"
            asked = {"type": "http", "path": request.scope["path"]}
            methods = [method for method in METHODS if any(  # the router names those of the first route only
                route.matches({**asked, "method": method})[0] is Match.FULL for route in app.routes)]
            if methods:
                headers["Allow"] = ", ".join(methods)
        status, body = status_and_body(error, _body_model(request))
        if status in (429, 503):
            headers["Retry-After"] = "1"
        return JSONResponse(error_for(path, body), status, headers)

    for kind in (EdgetuneError, RequestValidationError, HTTPException, Exception):
        app.add_exception_handler(kind, answer)


def _body_model(request: Request) -> type[BaseModel] | None:
    """The model of a route's body, if it has one."""
    field = getattr(request.scope.get("route"), "body_field", None)
    kind = field.field_info.annotation if field else None
    return kind if isinstance(kind, type) and issubclass(kind, BaseModel) else None


JSONL = "application/jsonl"


def of_type(*kinds: str) -> dict[int | str, dict[str, Any]]:
    """The schema of responses that are not JSON; their errors are."""
    return {200: {"content": {kind: {"schema": {"type": "string"}} for kind in kinds}}}


def status_and_body(error: Exception, expected: type[BaseModel] | None = None) -> tuple[int, dict[str, Any]]:
    """(status, body) of an error. expected: the model of the request's body."""
    if isinstance(error, RequestValidationError):
        message, param = sentence_of(error, expected)
        return 400, error_body(400, message, param, "invalid_value")
    error = refusal(error) or error
    if isinstance(error, HTTPException) and isinstance(error.__cause__, OSError):  # while FastAPI took an upload in
        error = DiskError(f"cannot keep the upload: {error.__cause__.strerror}", "make room on the disk")
    if isinstance(error, HTTPException):
        return error.status_code, error_body(error.status_code, str(error.detail), code=CODES.get(error.status_code))
    for kind, status, code in KINDS:
        if isinstance(error, kind):
            return status, error_body(status, str(error), getattr(error, "param", None), code)
    log.error("a request failed", exc_info=error)
    return 500, error_body(500, "something went wrong in the daemon; its log says what")


# ---- requests that do not fit their schema ---------------------------------------------------------------------------


def sentence_of(error: RequestValidationError, body: type[BaseModel] | None) -> tuple[str, str | None]:
    """(a sentence for the first thing that is wrong, the name of it). body: the model of the route's body, if any."""
    errors = error.errors()
    name, value = _place(error.body, errors[0])
    same = [e for e in errors if _place(error.body, e)[0] == name]  # each branch of a union reports an error
    kinds = {e["type"] for e in same}
    if not name and "missing" not in kinds:
        return "the body is no JSON object; send one, with Content-Type: application/json", None
    if "missing" in kinds:
        return f"{name or 'the body'} is missing; /openapi.json says what can be given", name or None
    if kinds == {"extra_forbidden"}:
        return _unknown(name, body), name[:LONGEST]
    subject = f"a key of {name.rpartition('.')[0]}" if errors[0]["loc"][-1] == KEY else name[:LONGEST]
    return f"{subject} {_found(value, same)}; it {_expected(same)}", name[:LONGEST]


def _place(body: Any, error: Any) -> tuple[str, Any]:
    """(where an error is as people name it (a.b.0), without pydantic's names of a union's branches; the value there)"""
    where, *parts = error["loc"]
    if where != "body":
        return ".".join(map(str, parts)), error["input"]
    names: list[str] = []
    node = body
    for part in parts:
        known = part in node if isinstance(node, Mapping) else isinstance(node, list) and part in range(len(node))
        if known:
            node = node[part]
        if known or (error["type"] == "missing" and part is parts[-1]):
            names.append(str(part))
    return ".".join(names), error["input"] if parts and parts[-1] == KEY else node


def _unknown(name: str, body: type[BaseModel] | None) -> str:
    """Describes a field that does not exist, with those that do."""
    *above, last = name.split(".")
    model = body
    for part in above:
        model = _model_at(model, part)
    if model is None:
        return f"there is no option {name!r:.100}; /openapi.json lists those that exist"
    where = f" in {'.'.join(above)}" if above else ""
    return f"there is no {last!r:.100}{where}; it takes {', '.join(model.model_fields)}"


def _model_at(model: type[BaseModel] | None, name: str) -> type[BaseModel] | None:
    """The model of a field, where that is an object."""
    if model is None or name not in model.model_fields:
        return None
    annotation = model.model_fields[name].annotation
    for kind in (annotation, *get_args(annotation)):
        if isinstance(kind, type) and issubclass(kind, BaseModel):
            return kind
    return None


def _found(value: Any, errors: Sequence[Any]) -> str:
    if any(e["type"] == "string_too_long" for e in errors):
        return f"has {len(value)} characters"
    if any(e["type"] in ("too_long", "too_short") for e in errors):
        return f"has {_items(len(value))}"
    return f"is {value!r:.100}"


def _expected(errors: Sequence[Any]) -> str:
    """The requirements of the branches of a union, each once."""
    limits = [_limit(e["type"], e.get("ctx") or {}) for e in errors]
    if any(limits):  # of a branch that its type fits
        return next(filter(None, limits))
    kinds = [str(e["ctx"]["expected"]).replace("False", "false") if e["type"] == "literal_error"
             else WORDS.get(e["type"], "") for e in errors]
    if not all(kinds):
        return "must be as /openapi.json describes it"
    return f"must be {' or '.join(dict.fromkeys(kinds))}"


def _limit(what: str, values: Mapping[str, Any]) -> str:
    match what:
        case "greater_than_equal":
            return f"must be {values['ge']:g} or more"
        case "greater_than":
            return f"must be more than {values['gt']:g}"
        case "less_than_equal":
            return f"must be {values['le']:g} or less"
        case "too_short":
            return f"must have {_items(values['min_length'])} or more"
        case "too_long":
            return f"must have {_items(values['max_length'])} or fewer" if values["max_length"] else "must be empty"
        case "string_too_long":
            return f"must have {values['max_length']} characters or fewer"
    return ""


def _items(count: int) -> str:
    return f"{count} item{'' if count == 1 else 's'}"
