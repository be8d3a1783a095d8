"""The progress of a long step, and its stop."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

from ..errors import Interrupted

T = TypeVar("T")
Progress = Callable[[str, float, float], None]  # what is being done, how much of it is done, of how much


def ignore(what: str, done: float, total: float) -> None:
    """Progress that is reported to nobody."""


def unheard(_estimate: object) -> None:
    """An estimate that nobody waits for."""


def never() -> bool:
    """Nothing asks to stop."""
    return False


def raise_if_stopped(should_stop: Callable[[], bool]) -> None:
    """Raises Interrupted when asked to stop; nothing is written by then."""
    if should_stop():
        raise Interrupted("stopped before the model was written", "start the same command again")


def in_parallel(work: Callable[[str], T], names: list[str], threads: int, what: str, on_progress: Progress,
                should_stop: Callable[[], bool]) -> dict[str, T]:
    """{name: work(name)}, in the order of the names, on that number of threads."""
    done: dict[str, T] = {}
    with ThreadPoolExecutor(threads) as pool:
        waiting = {name: pool.submit(work, name) for name in names}
        try:
            for name, future in waiting.items():
                raise_if_stopped(should_stop)
                done[name] = future.result()
                on_progress(what, len(done), len(names))
        except BaseException:
            pool.shutdown(cancel_futures=True)
            raise
    return done
