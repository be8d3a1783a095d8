"""Limits the size and the time of each request's body, and the size of all those in progress together.

A body becomes Python objects of up to 25 times its size, which live until its request is answered. So the sum over all
requests bounds the memory of the daemon, not the size of one.
"""

from __future__ import annotations

import asyncio
import hashlib
import time

from starlette.exceptions import HTTPException
from starlette.types import Message, Receive

from ..options import DaemonConfig

BODY_SECONDS = 30.0  # that a body may keep the daemon waiting,
BYTES_PER_S = 4096  # and one more for each of these
AT_ONCE = 4  # bodies of the largest size in progress
LEAST = 4 << 20  # bytes of bodies in progress, where the largest size is small
RETRY = {"Retry-After": "1"}
CLOSE = {"Connection": "close"}


class Bodies:
    """The bytes of all bodies in progress. For one event loop."""

    def __init__(self, config: DaemonConfig) -> None:
        self.largest = config.max_body << 10
        self.most = max(AT_ONCE * self.largest, LEAST)
        self.held = 0
        self.read = 0  # bytes since the last time that freed memory was given back

    def hold(self, nbytes: int) -> None:
        """Reserves bytes. Raises HTTPException if they are too many together."""
        if self.held + nbytes > self.most:
            raise HTTPException(503, f"the requests in progress have {self.most} bytes together, the most here; ask "
                                "again in a moment", CLOSE | RETRY)
        self.held += nbytes

    def free(self, nbytes: int) -> None:
        self.held -= nbytes


class LimitedBody:
    """`receive` of one request, which counts the bytes and measures the time; `limit`: its greatest size in bytes.

    spooled: it is an upload, which is written to the disk as it comes; at most the largest body's size counts.
    """

    def __init__(self, bodies: Bodies, receive: Receive, limit: int, length: int, spooled: bool) -> None:
        """length: bytes by its Content-Length, 0 without. Raises HTTPException."""
        self.bodies = bodies
        self.limit = limit
        self._receive = receive
        self._memory = bodies.largest if spooled else limit
        self._held = 0
        self._seen = 0
        self._unpacked = 0
        self._waited = 0.0
        self._whole = False
        if length > limit:
            raise too_large(limit)
        self._hold(length)

    async def __call__(self) -> Message:
        if self._whole:
            return await self._receive()
        start = time.monotonic()
        allowed = BODY_SECONDS + self._seen / BYTES_PER_S
        try:
            message = await asyncio.wait_for(self._receive(), max(allowed - self._waited, 0))
        except asyncio.TimeoutError:
            raise HTTPException(408, f"the body kept this daemon waiting for {allowed:.0f} seconds, the most here; "
                                "send it without pauses", CLOSE) from None
        self._waited += time.monotonic() - start
        self._seen += len(message.get("body", b""))
        self._whole = not message.get("more_body", False)
        if self._seen > self.limit:
            raise too_large(self.limit)
        self._hold(self._seen)
        return message

    def count_unpacked(self, nbytes: int) -> None:
        """Counts bytes that a packed body came to. Raises HTTPException where they are too many."""
        self._unpacked += nbytes
        if self._unpacked > self.limit:
            raise too_large(self.limit)
        self._hold(self._unpacked)

    def _hold(self, nbytes: int) -> None:
        """Count `nbytes` in all for this body."""
        more = min(nbytes, self._memory) - self._held
        if more > 0:
            self.bodies.hold(more)
            self._held += more

    def end(self) -> None:
        """Call it when the request is answered and its objects are gone."""
        self.bodies.free(self._held)
        self.bodies.read += self._seen + self._unpacked
        self._held = 0


class Digested:
    """`receive` of a request whose body must have this SHA-256."""

    def __init__(self, receive: Receive, digest: str) -> None:
        self._receive = receive
        self._digest = digest
        self._found = hashlib.sha256()

    async def __call__(self) -> Message:
        message = await self._receive()
        if message["type"] == "http.request":
            self._found.update(message.get("body", b""))
            if not message.get("more_body", False) and self._found.hexdigest() != self._digest:
                raise HTTPException(400, "the body is not the one that was signed; send it again", CLOSE)
        return message


def too_large(limit: int) -> HTTPException:
    return HTTPException(413, f"the request has more than {limit} bytes, the most here; send less, or raise --max-body "
                         "(--max-upload for files)", CLOSE)
