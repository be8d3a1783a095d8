"""Errors as an HTTP status and OpenAI's error body; and JSON read strictly."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

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
from .validation import sentence_of

log = logging.getLogger("edgetune.daemon")


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
    403: "A page of another origin asks, or the Host is not this daemon's.", 404: "Nothing has this name or id.",
    408: "The body came too slowly.", 413: "A body, a file or a text is too large.",
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
            if methods := _methods(app, request.scope["path"]):  # the router names those of the first route only
                headers["Allow"] = ", ".join(methods)
        status, body = status_and_body(error, _body_model(request))
        if status in (429, 503):
            headers["Retry-After"] = "1"
        return JSONResponse(error_for(path, body), status, headers)

    for kind in (EdgetuneError, RequestValidationError, HTTPException, Exception):
        app.add_exception_handler(kind, answer)


def _methods(app: FastAPI, path: str) -> list[str]:
    """The methods of a path, from the routes: the schema, which lists them too, takes seconds to make."""
    return [method for method in METHODS if any(
        route.matches({"type": "http", "method": method, "path": path})[0] is Match.FULL for route in app.routes)]


def _body_model(request: Request) -> type[BaseModel] | None:
    """The model of a route's body, if it has one."""
    field = getattr(request.scope.get("route"), "body_field", None)
    kind = field.field_info.annotation if field else None
    return kind if isinstance(kind, type) and issubclass(kind, BaseModel) else None


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
