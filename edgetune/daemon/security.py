"""What stands before the API, as ASGI middleware: who may ask (key, Host, Origin), how much, and headers for browsers.

A web page in the owner's browser can send requests to a server on loopback. It cannot read the answers (no CORS), its
writes are refused by their Origin, and a name that it lets point to 127.0.0.1 (DNS rebinding) by the Host.
"""

from __future__ import annotations

import hmac
import json
import logging
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from starlette.datastructures import Headers, MutableHeaders
from starlette.exceptions import HTTPException
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from ..errors import EdgetuneError
from .keys import hash_of, read_keys
from .options import LOOPBACK, DaemonConfig

log = logging.getLogger("edgetune.daemon")
OPEN = ("/", "/healthz")  # without a key: the page, which asks for one, and whether anybody is there
UPLOADS = "/v1/files"
_FORM = 64 * 1024  # what a form has around its file at most
_READS = ("GET", "HEAD", "OPTIONS")
_HEADERS = {
    "Cache-Control": "no-store",
    "Content-Security-Policy": "default-src 'none'; frame-ancestors 'none'",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
}
_TYPES = {401: "authentication_error", 403: "permission_error", 429: "rate_limit_error"}


def error_body(status: int, message: str, param: str | None = None, code: str | None = None) -> dict[str, Any]:
    """An error in OpenAI's shape."""
    kind = _TYPES.get(status, "server_error" if status >= 500 else "invalid_request_error")
    return {"error": {"message": message, "type": kind, "param": param, "code": code}}


class Keys:
    """The keys of a file, read again when it has changed: a key that was added or removed counts at once."""

    def __init__(self, path: Path) -> None:
        """Raises UsageError or FormatError for a file that is none."""
        self.path = path
        self._hashes, self._seen = list(read_keys(path)), (0, 0, 0)  # so read again at the first request

    def accept(self, key: str) -> bool:
        """In a time that tells nothing of the keys. Nobody, while the file cannot be read."""
        try:
            if (stamp := self._stamp()) != self._seen:
                self._hashes, self._seen = list(read_keys(self.path)), stamp
        except (OSError, EdgetuneError) as error:
            log.warning("nobody is let in: %s", error)
            return False
        shown = hash_of(key)
        return sum(hmac.compare_digest(shown, known) for known in self._hashes) > 0

    def _stamp(self) -> tuple[int, int, int]:
        stat = os.stat(self.path)  # noqa: PTH116 - once a request
        return stat.st_mtime_ns, stat.st_size, stat.st_ino


class Refused(Exception):
    """A request that must not reach the app."""

    def __init__(self, status: int, message: str, code: str, headers: Mapping[str, str] | None = None) -> None:
        super().__init__(message)
        self.status, self.code, self.headers = status, code, dict(headers or {})


class Guard:
    """Lets through what may pass, its body counted, and adds the headers to every answer."""

    def __init__(self, app: ASGIApp, config: DaemonConfig, keys: Keys | None) -> None:
        self.app, self.config, self.keys = app, config, keys

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return

        async def with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = MutableHeaders(scope=message)
                for name, value in _HEADERS.items():
                    headers.setdefault(name, value)
            await send(message)

        try:
            limit = self.check(scope)
        except Refused as refused:
            await _answer(refused, with_headers)
        else:
            await self.app(scope, _counted(receive, limit), with_headers)

    def check(self, scope: Scope) -> int:
        """How many bytes its body may have. Raises Refused."""
        headers = Headers(scope=scope)
        self._check_host(headers.get("host", ""))
        self._check_origin(scope["method"], headers)
        self._check_key(scope["path"], headers.get("authorization", ""))
        limit = self.config.max_body << 10
        if scope["path"] == UPLOADS:
            limit = (self.config.max_upload << 20) + _FORM
        if headers.get("content-length", "0").strip().isdigit() and int(headers.get("content-length", "0")) > limit:
            raise _too_large(limit)
        return limit

    def _check_host(self, host: str) -> None:
        """Who listens on loopback is called by a name of loopback: another was made to point there."""
        if self.config.socket or self.config.host not in LOOPBACK:
            return
        name = host.rsplit(":", 1)[0] if not host.endswith("]") else host
        if name.strip("[]").lower() not in LOOPBACK:
            raise Refused(403, f"the Host is {host!r:.100}; call this daemon by {', '.join(LOOPBACK)}", "wrong_host")

    def _check_origin(self, method: str, headers: Headers) -> None:
        origin = headers.get("origin")
        if method in _READS or origin is None:
            return
        if origin.partition("://")[2] != headers.get("host", ""):
            raise Refused(403, f"a page of {origin!r:.100} may not write here; use the page of this daemon",
                          "wrong_origin")

    def _check_key(self, path: str, authorization: str) -> None:
        if self.keys is None or path in OPEN:
            return
        scheme, _, key = authorization.partition(" ")
        if scheme.lower() != "bearer" or not self.keys.accept(key.strip()):
            what = "the key is not one of this daemon's" if authorization else "this daemon asks for a key"
            raise Refused(401, f"{what}; send it as Authorization: Bearer KEY (edgetune service key NAME makes one)",
                          "invalid_api_key", {"WWW-Authenticate": "Bearer"})


def _too_large(limit: int) -> Refused:
    return Refused(413, f"the request has more than {limit} bytes, the most here; send less, or raise --max-body "
                   "(--max-upload for files)", "too_large")


def _counted(receive: Receive, limit: int) -> Receive:
    """Bytes that come without a length before them are counted as they come."""
    seen = 0

    async def counted() -> Message:
        nonlocal seen
        message = await receive()
        seen += len(message.get("body", b""))
        if seen > limit:  # what FastAPI lets through while it reads
            refused = _too_large(limit)
            raise HTTPException(refused.status, str(refused), {"Connection": "close"})
        return message

    return counted


async def _answer(refused: Refused, send: Send) -> None:
    """Says no, and closes: what is left of the body is not read."""
    body = json.dumps(error_body(refused.status, str(refused), code=refused.code)).encode()
    headers = {"content-type": "application/json", "content-length": str(len(body)), "connection": "close",
               **refused.headers}
    await send({"type": "http.response.start", "status": refused.status,
                "headers": [(name.lower().encode(), value.encode("latin-1")) for name, value in headers.items()]})
    await send({"type": "http.response.body", "body": body})
