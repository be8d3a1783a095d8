"""Signals that ask a process of ours to stop, of Ctrl-C, of kill and of a terminal that was closed."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager

STREAMS = (0, 1, 2)  # descriptors


@contextmanager
def stop_requests(handle: Callable[[int], None]) -> Iterator[None]:
    """Calls `handle` with the number of each SIGINT, SIGTERM and SIGHUP, in the main thread. SIGHUP remains ignored
    where it is, as under nohup. What is written to a closed terminal is lost from then on, and is no error.
    """
    terminals = [stream for stream in STREAMS if _is_terminal(stream)]

    def asked(number: int, _frame: object) -> None:
        if number == signal.SIGHUP:
            _leave([stream for stream in terminals if not _is_terminal(stream)])
        handle(number)

    numbers = [signal.SIGINT, signal.SIGTERM]
    if signal.getsignal(signal.SIGHUP) != signal.SIG_IGN:
        numbers.append(signal.SIGHUP)
    before = {number: signal.signal(number, asked) for number in numbers}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _is_terminal(stream: int) -> bool:
    try:
        return os.isatty(stream)
    except OSError:  # it is closed
        return False


def _leave(streams: list[int]) -> None:
    """Lets writing to these streams succeed, and reading find their end."""
    if streams:
        nowhere = os.open(os.devnull, os.O_RDWR)
        for stream in streams:
            os.dup2(nowhere, stream)
        os.close(nowhere)
