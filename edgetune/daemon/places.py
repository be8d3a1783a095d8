"""Places for waiting requests, of which few are computed at a time: a request that finds too many waiting is refused.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager

from ..errors import TooMuchError


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
