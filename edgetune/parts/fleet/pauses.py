"""Waiting that a signal ends soon, and work that is tried again and again."""

from __future__ import annotations

import time
from collections.abc import Callable

from ...errors import FormatError, Interrupted, UnansweredError

Say = Callable[[str], object]
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


def again(act: Callable[[], bool], seconds: float, should_stop: Callable[[], bool], say: Say) -> None:
    """Calls `act` until it returns True, this often. A folder that is not whole yet is looked at the next time, and a
    daemon that does not answer is asked again.

    Raises Interrupted if should_stop returns True while it waits.
    """
    said = ""
    while True:
        try:
            if act():
                return
        except (FormatError, UnansweredError) as error:
            if str(error) != said:
                said = str(error)
                say(f"waiting: {error.what}")
        wait(seconds, should_stop)
