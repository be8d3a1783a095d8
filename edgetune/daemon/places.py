"""Places in a line for requests of which few are computed at a time: whoever finds too many waiting is told so."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager

from ..errors import TooMuchError


class Places:
    """For any number of threads. most: that may wait; what: they are, for an error."""

    def __init__(self, most: int, what: str) -> None:
        self.waiting = 0  # with that in progress
        self.most = most
        self._what = what
        self._count = threading.Lock()

    @contextmanager
    def taken(self) -> Iterator[None]:
        """Held from the beginning of a request to its end. Raises TooMuchError where too many wait."""
        with self._count:
            if self.waiting > self.most:
                raise TooMuchError(f"{self.most} {self._what} wait already", "ask again in a few seconds")
            self.waiting += 1
        try:
            yield
        finally:
            with self._count:
                self.waiting -= 1
