"""Start, loop and stop of a daemon: uvicorn on a TCP port or a Unix socket; signals only set a flag."""

from __future__ import annotations

import asyncio
import logging
import os
import signal
import socket
import stat
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Coroutine, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import sdnotify
import uvicorn

from .. import disk
from ..errors import UsageError
from ..machine.signals import stop_requests
from .api.app import app
from .api.connections import KEEP_ALIVE, WATCH_SECONDS, Connection, watch
from .memory import give_back
from .options import DaemonConfig
from .service import Service
from .threads import RETRY_SECONDS, told

log = logging.getLogger("edgetune.daemon")
_DRAIN = 30  # seconds that answers may still take, of systemd's 90 until it kills
_LAST = 10  # more that uvicorn waits for requests to end with an error, once answers are broken off
_BACKLOG = 128  # connections that the kernel holds until they are accepted
_TRIM = 1 << 20  # bytes of bodies read, after which freed memory is given back
SWITCH_SECONDS = 0.001  # that a thread of Python may run while the event loop waits for its turn
_LOOKS = 10  # ticks of uvicorn's loop, of 0.1 s, between two signs of life


def log_formatter() -> logging.Formatter:
    """Formats a line of the log; systemd's journal adds the time itself."""
    when = "" if os.environ.get("JOURNAL_STREAM") else "%(asctime)s "
    return logging.Formatter(f"{when}%(levelname)s %(message)s", "%Y-%m-%d %H:%M:%S")


def run(service: Service, on_ready: Callable[[str], None] | None = None,
        on_interrupt: Callable[[], None] | None = None) -> None:
    """Serves until SIGTERM, SIGINT, SIGHUP or service.stopping, then lets answers end and training save; a second
    signal breaks answers off.

    on_ready gets the address (a URL, or unix:PATH) when the daemon answers; on_interrupt is called in the handler of
    SIGINT. Raises UsageError where it cannot listen, and errors that Service.start raises.
    """
    handler = logging.StreamHandler()
    handler.setFormatter(log_formatter())
    logging.basicConfig(level=logging.INFO, handlers=[handler])
    server = _Server(service, on_ready, on_interrupt)
    with _listening(service.config) as listener, server.signals(), _scratch(service.config.folder()), _takes_turns():
        server.address = address_of(listener)
        with service:
            server.run(sockets=[listener])


@contextmanager
def _takes_turns() -> Iterator[None]:
    """Lets threads that compute yield to the event loop soon."""
    before = sys.getswitchinterval()
    sys.setswitchinterval(SWITCH_SECONDS)
    try:
        yield
    finally:
        sys.setswitchinterval(before)


@contextmanager
def _scratch(folder: Path) -> Iterator[None]:
    """Lets uploads pass through a nameless file in the state folder: /tmp may be in memory."""
    disk.private_folder(folder)
    before = tempfile.tempdir
    tempfile.tempdir = str(folder)
    try:
        yield
    finally:
        tempfile.tempdir = before


class _Server(uvicorn.Server):
    def __init__(self, service: Service, on_ready: Callable[[str], None] | None,
                 on_interrupt: Callable[[], None] | None) -> None:
        # proxy_headers: else loopback could claim any address in X-Forwarded-For
        # log_level: a warning for each connection that does not speak HTTP would let strangers fill the disk
        super().__init__(uvicorn.Config(
            app(service), http=Connection, lifespan="off", ws="none", log_config=None, log_level="error",
            access_log=False, server_header=False, proxy_headers=False, backlog=_BACKLOG,
            timeout_graceful_shutdown=_DRAIN + _LAST, timeout_keep_alive=KEEP_ALIVE))
        self.service = service
        self.address = ""
        self._on_ready = on_ready
        self._on_interrupt = on_interrupt
        self._hurried = False
        self._tasks: list[asyncio.Task[None]] = []
        self._failures: dict[str, str] = {}  # of what is done between requests: by its name, a sentence
        self._systemd = sdnotify.SystemdNotifier() if "NOTIFY_SOCKET" in os.environ else None

    def notify(self, state: str) -> None:
        """Notifies systemd, if that started this process and requires it."""
        if self._systemd:
            self._systemd.notify(state)

    @contextmanager
    def signals(self) -> Iterator[None]:
        """Handles signals, from before the start: a model may load for minutes."""
        if threading.current_thread() is not threading.main_thread():
            yield
            return

        def asked(number: int) -> None:
            if number != signal.SIGHUP:  # of which a closed terminal sends two
                self._hurried = self.service.stopping.is_set()
            self.service.stopping.set()
            if number == signal.SIGINT and self._on_interrupt:
                self._on_interrupt()

        with stop_requests(asked):
            yield

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Replaces uvicorn's method, which raises the signal again at the end, before training is saved."""
        yield

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        self.service.parts = [*self.service.parts, self]
        self._tasks = [asyncio.create_task(self._repeated(name, work)) for name, work in (
            ("close silent connections", partial(watch, self.server_state)), ("give back memory", self._trim))]
        if not self.service.stopping.is_set():
            self.notify(f"READY=1\nSTATUS=answering on {self.address}")
            if self._on_ready:
                self._on_ready(self.address)

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        self.notify("STOPPING=1")
        for connection in list(self.server_state.connections):
            if isinstance(connection, Connection) and connection.waits():
                connection.hang_up()  # an incomplete request is not answered any more
        self._tasks.append(asyncio.create_task(self._break_off()))
        await super().shutdown(sockets)
        for task in self._tasks:
            task.cancel()

    async def _break_off(self) -> None:
        """Ends answers that take too long, or all after a second signal, with an error."""
        start = time.monotonic()
        while not self._hurried and time.monotonic() - start < _DRAIN:
            await asyncio.sleep(0.1)
        self.service.batcher.break_off()

    def threads(self) -> Sequence[threading.Thread]:
        """Always empty: without its thread nobody would be answered."""
        return ()

    def reasons(self) -> Sequence[str]:
        return [*self._failures.values()]

    async def _repeated(self, doing: str, work: Callable[[], Coroutine[Any, Any, None]]) -> None:
        """Does what never ends between requests, and after an error again in a minute."""
        while True:
            self._failures.pop(doing, None)
            try:
                await work()
            except Exception as error:  # any one: the work is needed as long as the daemon runs
                log.exception("the daemon does not %s now", doing)
                self._failures[doing] = f"the daemon did not {doing}, and tries again each minute: {told(error)}"
                await asyncio.sleep(RETRY_SECONDS)

    async def _trim(self) -> None:
        """Returns the memory of requests to the kernel once they are answered."""
        bodies = self.config.app.state.bodies  # type: ignore[union-attr]
        while True:
            await asyncio.sleep(WATCH_SECONDS)
            if bodies.read > _TRIM:
                bodies.read = 0
                await asyncio.to_thread(give_back)
            await asyncio.to_thread(self.service.embeddings.rest)

    async def on_tick(self, counter: int) -> bool:
        if counter % _LOOKS == 0:
            self.notify("WATCHDOG=1")
        return await super().on_tick(counter) or self.service.stopping.is_set()


# ---- where it listens -----------------------------------------------------------------------------------------------


@contextmanager
def _listening(config: DaemonConfig) -> Iterator[socket.socket]:
    """Yields a bound socket; a Unix socket's file, which its owner and group may use, is removed at the end."""
    path = Path(config.socket).expanduser() if config.socket else None
    family = socket.AF_UNIX if path else socket.AF_INET6 if ":" in config.host else socket.AF_INET
    protocol = 0 if path else socket.IPPROTO_TCP  # named, or asyncio leaves Nagle's algorithm on: 40 ms an answer
    with socket.socket(family, socket.SOCK_STREAM, protocol) as listener:
        try:
            if path:
                _remove_dead(path)
                before = os.umask(0o117)
                try:
                    listener.bind(str(path))
                finally:
                    os.umask(before)
            else:
                listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                listener.bind((config.host, config.port))
        except OSError as error:
            where = path or f"{config.host}:{config.port}"
            raise UsageError(f"cannot listen on {where}: {error.strerror or error}",
                             f"choose another {'--socket' if path else '--host or --port'}") from None
        try:
            yield listener
        finally:
            if path:
                path.unlink(missing_ok=True)


def _remove_dead(path: Path) -> None:
    """Removes the socket of a daemon that was killed, on which nothing answers."""
    if not path.exists():
        return
    if not stat.S_ISSOCK(path.stat().st_mode):
        raise UsageError(f"{path} exists and is no socket", "choose another --socket, or remove it")
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        try:
            probe.connect(str(path))
        except ConnectionRefusedError:
            path.unlink()
        else:
            raise UsageError(f"another process answers on {path}", "stop it, or choose another --socket")


def address_of(listener: socket.socket) -> str:
    """Returns http://127.0.0.1:8642, or unix:PATH."""
    name = listener.getsockname()
    if listener.family == socket.AF_UNIX:
        return f"unix:{name}"
    host = f"[{name[0]}]" if listener.family == socket.AF_INET6 else name[0]
    return f"http://{host}:{name[1]}"
