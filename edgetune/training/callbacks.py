"""The functions by which a run asks and informs its caller while it trains."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from ..machine.governor import Governor

Event = dict[str, Any]


@dataclass(frozen=True)
class RunCallbacks:
    """The functions of a run's caller, called on its thread. on_event: called with each event as {"event": "start" |
    "resume" | "step" | "eval" | "governor" | "done", ...}; all but start and done are lines of metrics.jsonl.
    should_stop: called before each block, many times a step; if it returns True, the state is saved and Interrupted
    raised, and the run can be resumed. governor: decides when the run slows down or pauses
    for others. busy: whether a request is being answered; the run then works a tenth of the time. name: the caller's
    name of the run, and resume_by: the way to continue it, for errors. command: the words that a user typed, for
    run.json.
    """

    on_event: Callable[[Event], None] = lambda _: None
    should_stop: Callable[[], bool] = lambda: False
    governor: Governor | None = None
    busy: Callable[[], bool] = lambda: False
    name: str = ""
    resume_by: str = "continue it with resume=True"
    command: Sequence[str] = ()
