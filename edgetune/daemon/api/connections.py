"""uvicorn's connections with limits on their number and on how long a client may keep the server waiting.

Without these a client that connects and sends nothing holds a descriptor for as long as it likes, and when none is left
the daemon cannot answer. Bodies have a limit in `bodies`.
"""

from __future__ import annotations

import asyncio
import logging
import resource
import time
from typing import Any

import h11
from uvicorn.protocols.http.h11_impl import H11Protocol
from uvicorn.server import ServerState

from .security import Seldom

HEAD_SECONDS = 10.0  # from a connection, or the first byte of a later request, to the end of the request's head
READ_SECONDS = 60.0  # in which a client must take some bytes of an answer that waits for it
MOST = 512  # connections, where descriptors suffice
KEEP_ALIVE = 30  # seconds between two requests
STALLED_SECONDS = 5.0  # without a byte taken of what waits to be sent, after which the client counts as not reading
WATCH_SECONDS = 1.0

log = Seldom(logging.getLogger("edgetune.daemon"))


def most_connections() -> int:
    """Half of the descriptors that this process may have: files, the database and adapters need some too."""
    return min(MOST, resource.getrlimit(resource.RLIMIT_NOFILE)[0] // 2)


class Connection(H11Protocol):
    """A connection that measures how long it waits for its client."""

    def __init__(self, *args: Any, **named: Any) -> None:
        super().__init__(*args, **named)
        self.heard_at = time.monotonic()  # when the client last sent something, or was answered
        self._head_since: float | None = self.heard_at
        self._unsent = 0
        self._unsent_since = self.heard_at

    # ---- called by asyncio and uvicorn --------------------------------------------------------------------------

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        make_room_for(self)

    def data_received(self, data: bytes) -> None:
        self.heard_at = time.monotonic()
        in_head = self.conn.their_state is h11.IDLE
        if in_head and self._head_since is None:
            self._head_since = self.heard_at
        super().data_received(data)
        if in_head and self.conn.their_state is not h11.IDLE:
            self._head_since = None

    def on_response_complete(self) -> None:
        self.heard_at = time.monotonic()
        # between two requests uvicorn's own limit holds; the rest of an unread body must not drip
        self._head_since = self.heard_at if self.conn.their_state is h11.SEND_BODY else None
        super().on_response_complete()

    # ---- called by the server -----------------------------------------------------------------------------------

    def overdue(self, now: float) -> bool:
        """Returns whether its client has made it wait too long. Call it regularly; it compares with the last call."""
        unsent = self.transport.get_write_buffer_size()
        if unsent == 0 or unsent < self._unsent:
            self._unsent_since = now
        self._unsent = unsent
        if now - self._unsent_since > READ_SECONDS:
            return True
        return self._head_since is not None and now - self._head_since > HEAD_SECONDS

    def waits(self) -> bool:
        """Returns whether it is the client's turn: to send a request, the rest of one, or to read."""
        stalled = self._unsent > 0 and time.monotonic() - self._unsent_since > STALLED_SECONDS
        if stalled or self.conn.their_state is h11.IDLE:
            return True
        return self.conn.their_state is h11.SEND_BODY and not self.flow.read_paused

    def hang_up(self) -> None:
        """Closes the connection at once, even if data waits to be sent."""
        self.transport.abort()


def make_room_for(new: Connection) -> None:
    """Closes the connection that has been silent for longest, or the new one, where there are too many."""
    others = [other for other in new.connections if isinstance(other, Connection) and other is not new
              and not other.transport.is_closing()]
    most = most_connections()
    if len(others) < most:
        return
    log.warning(f"{most} connections are open, the most here: those that are silent for longest are closed")
    silent = [other for other in others if other.waits()]
    victim = min(silent, key=lambda other: other.heard_at) if silent else new
    victim.hang_up()


async def watch(state: ServerState) -> None:
    """Hang up on clients that keep the server waiting, for as long as it runs."""
    while True:
        now = time.monotonic()
        for connection in list(state.connections):
            if isinstance(connection, Connection) and connection.overdue(now):
                connection.hang_up()
        await asyncio.sleep(WATCH_SECONDS)
