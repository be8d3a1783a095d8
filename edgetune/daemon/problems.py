"""What goes wrong, as a status and OpenAI's error body; and JSON read strictly, so that nothing odd comes in."""

from __future__ import annotations

import logging
import re
from collections.abc import Callable, Mapping
from typing import Any

from fastapi import FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from fastapi.routing import APIRoute
from pydantic_core import from_json
from starlette.exceptions import HTTPException

from ..errors import DiskError, EdgetuneError, NotFoundError, TooMuchError
from . import schemas
from .security import UPLOADS, error_body

log = logging.getLogger("edgetune.daemon")
STATUSES = {
    400: "The request is wrong.", 401: "No key, or a wrong one.", 403: "From a page or under a name that may not.",
    404: "Nothing has this name or id.", 413: "Too large.", 429: "Too busy; come again.", 503: "The daemon stops.",
    507: "The disk takes no more.",
}
RESPONSES: dict[int | str, dict[str, Any]] = {
    status: {"model": schemas.Error, "description": what} for status, what in STATUSES.items()}


class _Json(Request):
    """Refuses what Python's parser lets through: NaN, halves of surrogate pairs, nesting without end."""

    async def json(self) -> Any:
        try:
            return from_json(await self.body(), allow_inf_nan=False)
        except ValueError as error:
            raise HTTPException(400, f"the body is no JSON: {error}") from None


class JsonRoute(APIRoute):
    def get_route_handler(self) -> Callable[[Request], Any]:
        handler = super().get_route_handler()

        async def strict(request: Request) -> Response:
            return await handler(_Json(request.scope, request.receive))

        return strict


def install(app: FastAPI) -> None:
    """Every way to fail ends in OpenAI's body."""

    async def answer(request: Request, error: Exception) -> Response:
        path, headers = request.url.path, dict(getattr(error, "headers", None) or {})
        if isinstance(error, HTTPException) and error.status_code in (404, 405):  # of the router: ours is NotFoundError
            error.detail = f"there is no {request.method} {path!r:.200}; /openapi.json lists what there is"
            if methods := _methods(app, path):  # the router names those of the first route only
                headers["Allow"] = ", ".join(methods)
        status, body = problem(error, uploading=path == UPLOADS)
        return JSONResponse(body, status, headers | ({"Retry-After": "1"} if status == 429 else {}))

    for kind in (EdgetuneError, RequestValidationError, HTTPException, Exception):
        app.add_exception_handler(kind, answer)


def _methods(app: FastAPI, path: str) -> list[str]:
    """What may be done at a path; one without placeholders comes first."""
    paths = app.openapi()["paths"]
    found = [path] if path in paths else [template for template in paths if re.fullmatch(
        re.sub(r"\{\w+\}", "[^/]+", template), path)]
    return sorted({method.upper() for template in found for method in paths[template]})


def problem(error: Exception, uploading: bool = False) -> tuple[int, dict[str, Any]]:
    """(status, body) of an error."""
    if isinstance(error, RequestValidationError):
        message, param = _invalid(error)
        return 400, error_body(400, message, param, "invalid_value")
    if isinstance(error, HTTPException) and isinstance(error.__cause__, OSError):  # while FastAPI took an upload in
        error = DiskError(f"cannot keep the upload: {error.__cause__.strerror}", "make room on the disk")
    if isinstance(error, HTTPException):
        return error.status_code, error_body(error.status_code, str(error.detail))
    if isinstance(error, NotFoundError):
        return 404, error_body(404, str(error), code="not_found")
    if isinstance(error, TooMuchError):
        status = 413 if uploading else 429
        return status, error_body(status, str(error), code="too_much")
    if isinstance(error, DiskError):
        return 507, error_body(507, str(error), code="disk")
    if isinstance(error, EdgetuneError):
        return 400, error_body(400, str(error))
    log.error("a request failed", exc_info=error)
    return 500, error_body(500, "something went wrong in the daemon; its log says what")


def _invalid(error: RequestValidationError) -> tuple[str, str | None]:
    """One sentence for the first thing that is wrong, and the name of it."""
    errors = error.errors()
    name, value = _place(error.body, errors[0])
    same = [e for e in errors if _place(error.body, e)[0] == name]  # a union's branches each have their say
    kinds, what = {e["type"] for e in same}, name or "the body"
    if not name and "missing" not in kinds:
        return "the body is no JSON object; send one, with Content-Type: application/json", None
    if "missing" in kinds:
        return f"{what} is missing; /openapi.json says what there is to give", name or None
    if kinds == {"extra_forbidden"}:
        return f"there is no option {name!r:.100}; /openapi.json lists those that there are", name
    expected = " or ".join(dict.fromkeys(e["msg"].removeprefix("Input ") for e in same))
    return f"{what} is {value!r:.100}; it {expected}", name


def _place(body: Any, error: Any) -> tuple[str, Any]:
    """Where an error is as people name it (a.b.0), without pydantic's names of a union's branches; what is there."""
    where, *parts = error["loc"]
    if where != "body":
        return ".".join(map(str, parts)), error["input"]
    names, node = [], body
    for part in parts:
        known = part in node if isinstance(node, Mapping) else isinstance(node, list) and part in range(len(node))
        if known:
            node = node[part]
        if known or (error["type"] == "missing" and part is parts[-1]):
            names.append(str(part))
    return ".".join(names), node
