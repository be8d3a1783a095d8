"""Waiting that a signal ends soon."""

from __future__ import annotations

import time
from collections.abc import Callable

from ...errors import Interrupted

LOOK = 0.2  # seconds between two questions whether to stop, at most


def stopped(seconds: float, should_stop: Callable[[], bool]) -> bool:
    """Waits, and returns False; True as soon as should_stop does."""
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        if should_stop():
            return True
        time.sleep(min(LOOK, seconds))
    return False


def wait(seconds: float, should_stop: Callable[[], bool]) -> None:
    """Waits. Raises Interrupted as soon as should_stop returns True."""
    if stopped(seconds, should_stop):
        raise Interrupted("waiting was stopped", "continue with the same command")
