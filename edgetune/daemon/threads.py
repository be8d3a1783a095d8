"""Parts of the daemon that work by themselves, each on its thread, and how its health sees them.

A thread belongs to a part, and Service.parts has all parts. So a thread that died, and work that does not continue,
cannot remain unseen. Places are for requests of which few are computed at a time.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Protocol

from ..errors import EdgetuneError, TooMuchError, named

log = logging.getLogger("edgetune.daemon")
RETRY_SECONDS = 60.0  # after an error


class Threaded(Protocol):
    """A part of the daemon that works by itself."""

    def threads(self) -> Sequence[threading.Thread]:
        """Returns its threads. Those that were started live until it stops."""

    def reasons(self) -> Sequence[str]:
        """Returns why some of its work does not continue now, a sentence each."""


class Background(threading.Thread):
    """A thread that repeats `work` until `stopping` is set. An error is logged and named in `failure`, for the reasons
    of its part, until `work` succeeds again; it does not end the thread. doing: the work in words, after "does not".
    """

    def __init__(self, name: str, work: Callable[[], object], stopping: threading.Event, doing: str) -> None:
        super().__init__(name=name, daemon=True)
        self.failure = ""
        self._work = work
        self._stopping = stopping
        self._doing = doing

    def run(self) -> None:
        while not self._stopping.is_set():
            try:
                self._work()
            except Exception as error:  # any one: whoever needs the work needs the thread
                failure = f"the daemon does not {self._doing} now: {told(error)}"
                log.warning("%s", failure, exc_info=not isinstance(error, EdgetuneError))
                self.failure = failure
                self._stopping.wait(RETRY_SECONDS)
            else:
                self.failure = ""

    def stop(self) -> None:
        """Returns when the work in progress has ended."""
        self._stopping.set()
        if self.ident:
            self.join()


def told(error: Exception) -> str:
    """Returns an error in words: ours as it is, any other with its class."""
    return str(error) if isinstance(error, EdgetuneError) else named(error)


def health_of(parts: Sequence[Threaded]) -> list[str]:
    """Returns why parts do not work, a sentence each: threads that died first."""
    dead = [f"the thread {thread.name} has died: restart the daemon; its log says why"
            for part in parts for thread in part.threads() if thread.ident and not thread.is_alive()]
    return [*dead, *(reason for part in parts for reason in part.reasons())]


class Places:
    """A number of places, for any number of threads. most: requests that may wait; what: their noun, for an error."""

    def __init__(self, most: int, what: str) -> None:
        self.waiting = 0  # including those in progress
        self.most = most
        self._what = what
        self._count = threading.Lock()

    @contextmanager
    def taken(self) -> Iterator[None]:
        """Holds a place from the beginning of a request to its end. Raises TooMuchError where too many wait."""
        with self._count:
            if self.waiting > self.most:
                raise TooMuchError(f"{self.most} {self._what} wait already", "ask again in a few seconds")
            self.waiting += 1
        try:
            yield
        finally:
            with self._count:
                self.waiting -= 1
