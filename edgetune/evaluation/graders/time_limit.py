"""A limit on the seconds that a grader may take for an answer, for a process that must not hang.

A pattern can backtrack for longer than anybody waits; Python's re looks for signals while it searches.
"""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable

from ...errors import EdgetuneError
from .sample import Ungraded

MAX_LATE = 3  # answers that may take longer, then it is the grader that is wrong

_seconds = 0.0  # 0: no limit
_late = 0


def set_time_limit(seconds: float) -> None:
    """Sets the time limit of all graders of this process, which must grade on its main thread. 0: none."""
    global _seconds, _late
    _seconds = seconds
    _late = 0
    if seconds:
        signal.signal(signal.SIGALRM, _on_alarm)


def in_time(score: Callable[[], float], name: str) -> float:
    """Returns the result of `score`. Raises Ungraded after the limit, and EdgetuneError if that happens too often."""
    global _late
    if not _seconds or threading.current_thread() is not threading.main_thread():
        return score()
    signal.setitimer(signal.ITIMER_REAL, _seconds)
    try:
        return score()
    except _LateError:
        _late += 1
        if _late >= MAX_LATE:
            raise EdgetuneError(f"the grader {name} took more than {_seconds:g} s on each of {_late} answers",
                                "give it a simpler pattern, or let answers be shorter") from None
        raise Ungraded("unresponsive_reward_error") from None
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)


class _LateError(Exception):
    pass


def _on_alarm(*_signal: object) -> None:
    raise _LateError
