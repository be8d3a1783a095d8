"""How a long step is watched and stopped."""

from __future__ import annotations

from collections.abc import Callable

from ..errors import Interrupted

Progress = Callable[[str, float, float], None]  # what is being done, how much of it is done, of how much


def ignore(what: str, done: float, total: float) -> None:
    """Progress that nobody watches."""


def never() -> bool:
    """Nothing asks to stop."""
    return False


def go_on(should_stop: Callable[[], bool]) -> None:
    """Raises Interrupted when asked to stop; nothing is written by then."""
    if should_stop():
        raise Interrupted("stopped before the model was written", "start the same command again")
