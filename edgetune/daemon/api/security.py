"""ASGI middleware in front of the API: who may ask what (key, Host, Origin), how much, and headers for browsers.

A web page in the owner's browser can send requests to a server on loopback. It cannot read the answers (no CORS), its
writes are refused by their Origin, and a name that it lets point to 127.0.0.1 (DNS rebinding) by the Host.
"""

from __future__ import annotations

import hmac
import json
import logging
import os
import re
import time
from collections.abc import Callable, Mapping, Sequence
from functools import cache
from ipaddress import ip_address
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from starlette.datastructures import Headers, MutableHeaders
from starlette.exceptions import HTTPException
from starlette.routing import BaseRoute, Match
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from ...errors import EdgetuneError
from ...manifest import manifests
from ..keys import KeyScope, hash_of, read_keys
from ..options import LOOPBACK
from .bodies import Bodies, Digested, LimitedBody
from .encodings import UnpackedBody, unpacker

if TYPE_CHECKING:
    from ..service import Service

HEALTH = ("/healthz", "/health", "/v1/health")
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
_FRAMES = "frame-ancestors 'none'"
_OWN_FRAMES = "frame-ancestors 'self'"  # pages of the address that the browser shows: the proxy's
CODES = {408: "too_slow", 413: "too_large", 415: "unknown_encoding", 503: "too_much"}  # of every request
_TYPES = {401: "authentication_error", 403: "permission_error", 429: "rate_limit_error"}


def error_body(status: int, message: str, param: str | None = None, code: str | None = None) -> dict[str, Any]:
    """An error in OpenAI's shape."""
    kind = _TYPES.get(status, "server_error" if status >= 500 else "invalid_request_error")
    return {"error": {"message": message, "type": kind, "param": param, "code": code}}


@cache
def _shapes() -> dict[str, Callable[[dict[str, Any]], dict[str, Any]]]:
    """The shapes of errors that parts have, by the beginnings of their paths."""
    return {start: manifest.load(shape) for manifest in manifests() for start, shape in manifest.errors.items()}


def error_for(path: str, body: dict[str, Any]) -> dict[str, Any]:
    """An error of OpenAI's shape in that of the clients which ask this path."""
    return next((shape(body) for start, shape in _shapes().items() if path.startswith(start)), body)


class Seldom:
    """A log for events that any client can cause: each message appears at most once a minute."""

    SECONDS = 60.0

    def __init__(self, log: logging.Logger) -> None:
        self._log = log
        self._logged: dict[str, float] = {}

    def warning(self, text: str) -> None:
        now = time.monotonic()
        self._logged = {other: at for other, at in self._logged.items() if now - at < self.SECONDS}
        if text not in self._logged:
            self._logged[text] = now
            self._log.warning("%s", text)


Endpoint = TypeVar("Endpoint", bound=Callable[..., Any])


def needs(scope: KeyScope) -> Callable[[Endpoint], Endpoint]:
    """Declares the scope that a key must have for the routes of a function; without it that is ADMIN."""

    def declare(endpoint: Endpoint) -> Endpoint:
        endpoint.key_scope = scope  # type: ignore[attr-defined]
        return endpoint

    return declare


def scope_of(route: BaseRoute) -> KeyScope:
    """Returns the scope that a key must have for a route."""
    found: KeyScope = getattr(getattr(route, "endpoint", None), "key_scope", KeyScope.ADMIN)
    return found


log = Seldom(logging.getLogger("edgetune.daemon"))
Stamp = tuple[int, ...]


class Keys:
    """The keys of a file, read again when it has changed: a key that was added or removed counts at once."""

    def __init__(self, path: Path) -> None:
        """Raises UsageError or FormatError for a file that is none."""
        self.path = path
        self._keys = read_keys(path)
        self._seen: Stamp = ()  # so read again at the first request

    def scope_of(self, key: str) -> KeyScope:
        """Returns what a key is for; OPEN: it is none. Takes the same time for every key. While the file cannot be
        read, there are none.
        """
        try:
            stamp = self._stamp()
            if stamp != self._seen:
                self._keys = read_keys(self.path)
                self._seen = stamp
        except (OSError, EdgetuneError) as error:
            log.warning(f"every key is refused: {error}")
            return KeyScope.OPEN
        shown = hash_of(key)
        return max(KeyScope(hmac.compare_digest(shown, known) * found.scope) for known, found in self._keys.items())

    def _stamp(self) -> Stamp:
        """A stamp that changes with the content of the file, and with its permissions."""
        stat = os.stat(self.path)  # noqa: PTH116 - once a request
        return stat.st_mtime_ns, stat.st_ctime_ns, stat.st_size, stat.st_ino, stat.st_mode


class Refused(HTTPException):
    """A request that must not reach the app."""

    def __init__(self, status: int, message: str, code: str, headers: Mapping[str, str] | None = None) -> None:
        super().__init__(status, message, dict(headers or {}))
        self.code = code


class Guard:
    """Refuses forbidden requests, counts the bodies of others, and adds the headers to every answer."""

    def __init__(self, app: ASGIApp, service: Service, keys: Keys | None, bodies: Bodies,
                 routes: Sequence[BaseRoute], uploads: Sequence[re.Pattern[str]]) -> None:
        """routes: in the order of the router, which takes the first that fits. uploads: paths that take files."""
        self.app = app
        self.service = service
        self.config = service.config
        self.keys = keys
        self.bodies = bodies
        self.routes = routes
        self.uploads = uploads
        self.proxy = TrustedProxy(service.config.trusted_proxy)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return

        async def with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = MutableHeaders(scope=message)
                for name, value in _HEADERS.items():
                    headers.setdefault(name, value)
                if self.proxy.sends(scope):
                    self.proxy.allow_frames(headers)
            await send(message)

        try:
            digest = self.check(scope)
            new = unpacker(Headers(scope=scope).get("content-encoding", ""))
            body = self.body(scope, receive)
        except HTTPException as refused:
            await _answer(refused, scope["path"], with_headers)
            return
        sent = Digested(body, digest) if digest else body
        try:
            await self.app(scope, UnpackedBody(sent, new, body) if new else sent, with_headers)
        finally:
            body.end()

    def check(self, scope: Scope) -> str:
        """The SHA-256 that the body must have; "": any. Raises HTTPException for a request that must not reach the app.
        """
        headers = Headers(scope=scope)
        self._check_host(headers.get("host", ""))
        trusted = self.proxy.sends(scope)
        self._check_origin(scope["method"], headers, self.proxy.host(headers) if trusted else "")
        for part in self.service.running.values():
            if (digest := part.admit(scope)) is not None:
                return digest
        if self.keys and not trusted:
            self._check_key(scope, self.keys, headers.get("authorization", ""))
        return ""

    def body(self, scope: Scope, receive: Receive) -> LimitedBody:
        """Raises HTTPException where it is too large, or too much is in progress."""
        upload = any(path.fullmatch(scope["path"]) for path in self.uploads)
        limit = (self.config.max_upload << 20) + _FORM if upload else self.config.max_body << 10
        length = Headers(scope=scope).get("content-length", "").strip()
        return LimitedBody(self.bodies, receive, limit, int(length) if length.isdigit() else 0, spooled=upload)

    def _check_host(self, host: str) -> None:
        """Refuses other names than those of loopback, if the daemon listens there: another was made to point there."""
        if self.config.socket or self.config.host not in LOOPBACK:
            return
        name = host.rsplit(":", 1)[0] if not host.endswith("]") else host
        if name.strip("[]").lower() not in LOOPBACK:
            raise Refused(403, f"the Host is {host!r:.100}; call this daemon by {', '.join(LOOPBACK)}", "wrong_host")

    def _check_origin(self, method: str, headers: Headers, proxied: str) -> None:
        """proxied: the name of the proxy that sent the request, "" for others."""
        origin = headers.get("origin")
        if method in _READS or origin is None:
            return
        named = origin.partition("://")[2]
        if not named or named not in (headers.get("host", ""), proxied):
            raise Refused(403, f"a page of {origin!r:.100} may not write here; use the page of this daemon",
                          "wrong_origin")

    def _check_key(self, scope: Scope, keys: Keys, authorization: str) -> None:
        needed = next((scope_of(route) for route in self.routes if route.matches(scope)[0] is Match.FULL),
                      KeyScope.ANSWER)  # of what there is not: the app says so to whoever has a key
        if needed is KeyScope.OPEN:
            return
        scheme, _, key = authorization.partition(" ")
        held = keys.scope_of(key.strip()) if scheme.lower() == "bearer" else KeyScope.OPEN
        if held is KeyScope.OPEN:
            what = "the key is not one of this daemon's" if authorization else "this daemon asks for a key"
            raise Refused(401, f"{what}; send it as Authorization: Bearer KEY (edgetune service key NAME makes one)",
                          "invalid_api_key", {"WWW-Authenticate": "Bearer"})
        if held < needed:
            raise Refused(403, f"{scope['method']} {scope['path']!r:.100} needs a key of the scope {needed.word}, and "
                          f"this one's is {held.word}; edgetune service key NAME --scope {needed.word} makes one",
                          "insufficient_scope",
                          {"WWW-Authenticate": f'Bearer error="insufficient_scope", scope="{needed.word}"'})


async def _answer(refused: HTTPException, path: str, send: Send) -> None:
    """Send the error and close: the rest of the body is not read."""
    code = getattr(refused, "code", None) or CODES.get(refused.status_code)
    body = json.dumps(error_for(path, error_body(refused.status_code, refused.detail, code=code))).encode()
    headers = {"content-type": "application/json", "content-length": str(len(body)), "connection": "close"}
    headers |= {name.lower(): value for name, value in (refused.headers or {}).items()}
    await send({"type": "http.response.start", "status": refused.status_code,
                "headers": [(name.encode(), value.encode("latin-1")) for name, value in headers.items()]})
    await send({"type": "http.response.body", "body": body})


class TrustedProxy:
    """A proxy in front of the daemon that has let its people in, such as Home Assistant's ingress; "": there is none.

    It is known by the address from which it connects; headers such as X-Forwarded-For, which anybody can send, count
    for nothing. It shows the page in one of its frames, and may call this daemon by another name than people do.
    """

    def __init__(self, address: str) -> None:
        self._address = ip_address(address) if address else None

    def sends(self, scope: Scope) -> bool:
        """Returns whether a request comes from it."""
        client = scope.get("client")  # None for a Unix socket
        if self._address is None or not client:
            return False
        try:
            address = ip_address(client[0])
        except ValueError:
            return False
        return (getattr(address, "ipv4_mapped", None) or address) == self._address  # IPv4 may come to a socket of IPv6

    @staticmethod
    def host(headers: Headers) -> str:
        """Returns the name by which the person's browser called the proxy; "" where it does not say."""
        return headers.get("x-forwarded-host", "").split(",")[0].strip()

    @staticmethod
    def allow_frames(headers: MutableHeaders) -> None:
        """Lets the proxy's pages show an answer in a frame."""
        headers["X-Frame-Options"] = "SAMEORIGIN"
        headers["Content-Security-Policy"] = headers["Content-Security-Policy"].replace(_FRAMES, _OWN_FRAMES)


