"""The reactions of a run to the governor: fewer threads, rests, smaller micro-batches, pauses, releasing memory.

Only a smaller micro-batch changes the result, and only in the last bits: sums over tokens are divided differently. It
is chosen for lack of memory alone.
"""

from __future__ import annotations

import math
import os
import time
from collections.abc import Callable
from typing import Any

from ..machine.governor import CHANGE_SECONDS, Governor
from .trainer import Trainer

POLL_SECONDS = 0.2  # between two checks for a reason to stop, during a pause or rest
YIELD_SECONDS = 0.01  # between two checks whether an answer has ended
YIELD_SHARE = 9  # during answers: seconds of sleep a second of work


def be_nice(nice: int) -> None:
    """Lower the priority of this thread and of those that it starts, the workers among them; never raise it."""
    if nice > os.getpriority(os.PRIO_PROCESS, 0):
        os.setpriority(os.PRIO_PROCESS, 0, nice)


class MemoryPressure(Exception):
    """Raised within a micro-batch if memory must be released now: the caller repeats the step or measurement."""


class AnswerPriority:
    """Yields to requests that are being answered: called between two pieces of work, it sleeps while `busy`, but works
    a tenth of the time, so that work advances even if answers never end.
    """

    def __init__(self, busy: Callable[[], bool], clock: Callable[[], float] = time.monotonic,
                 sleep: Callable[[float], None] = time.sleep) -> None:
        self.busy = busy
        self.clock = clock
        self.sleep = sleep
        self.worked_from = clock()

    def __call__(self, called_off: Callable[[], bool] = lambda: False) -> bool:
        """Returns whether it slept. called_off: checked during the sleep, which ends when it returns True."""
        began = self.clock()
        slept = False
        until = began + YIELD_SHARE * (began - self.worked_from)
        while self.busy() and self.clock() < until and not called_off():
            self.sleep(min(YIELD_SECONDS, max(until - self.clock(), 0.0)))
            slept = True
        self.worked_from = self.clock()
        return slept


class Courtesy:
    """A should_stop of work that keeps no state: it yields to answers, and waits as long as the governor says so."""

    def __init__(self, should_stop: Callable[[], bool], busy: Callable[[], bool], governor: Governor | None) -> None:
        self._should_stop = should_stop
        self._priority = AnswerPriority(busy)
        self._governor = governor if governor and governor.policy.govern else None

    def __call__(self) -> bool:
        self._priority(self._should_stop)
        while self._governor:
            self._governor.look()
            if self._governor.state.action != "pause" or self._should_stop():
                break
            time.sleep(POLL_SECONDS)
        return self._should_stop()


class Throttle:
    """A run's should_stop that also yields: it is called often, acts on the governor's decision and, while that is
    "pause", does not return.

    Within a micro-batch, where the arena holds activations, a pause waits for its end, with one thread. Lack of memory
    does not wait: MemoryPressure is raised.

    should_stop: the run's function that this one wraps. save: saves the state before a pause. write: takes
    {"event": "governor", ...}. busy: whether a request is being answered, for `AnswerPriority`. Raises UsageError where
    the run would not leave the memory that the policy asks for.
    """

    def __init__(self, governor: Governor, trainer: Trainer, should_stop: Callable[[], bool],
                 save: Callable[[], None], write: Callable[[dict[str, Any]], None],
                 sleep: Callable[[float], None] = time.sleep, busy: Callable[[], bool] = lambda: False) -> None:
        self.governor = governor
        self.trainer = trainer
        self.should_stop = should_stop
        self.save = save
        self.write = write
        self.sleep = sleep
        governor.expect(trainer.plan.arena_bytes)
        self._worked_from = governor.clock()
        self._release_due = False
        self._yield = AnswerPriority(busy, governor.clock, sleep)
        self._yield_written = -math.inf

    def __call__(self) -> bool:
        self._yield_to_answers()
        self._look()
        paused = self.governor.state.action == "pause"
        if self.trainer.micros.computing:
            if paused and self.governor.state.rule == "memory":
                raise MemoryPressure
        else:
            if self._release_due:
                self._release_memory()
            if paused and not self.should_stop():
                self._pause()
        self._rest()
        return self.should_stop()

    def _yield_to_answers(self) -> None:
        """Writes an event about it at most every ten seconds, because answers may be many and short."""
        self._yield.worked_from = self._worked_from
        if self._yield(self.should_stop):
            self._worked_from = self.governor.clock()  # this was a rest, too
            if self._worked_from - self._yield_written >= CHANGE_SECONDS:
                self._yield_written = self._worked_from
                cause = "someone is being answered, training keeps a tenth of the time"
                self._write_event("yield", "foreground", cause)

    def _look(self) -> None:
        seen = self.governor.readings
        if self.governor.look():
            self._apply()
        if self.governor.readings is not seen:
            self._release_due = self.governor.short_of_memory

    def _apply(self) -> None:
        """Sets threads and micro-batch by the new state, and writes an event."""
        state = self.governor.state
        ops = self.trainer.ops
        run = self.trainer.plan.run
        if state.action == "go":
            ops.working = ops.threads
        elif state.action == "slower":
            ops.working = max(ops.threads // 2, 1)
        else:
            ops.working = 1
        small = state.rule == "memory" and state.action != "go"
        least = self.trainer.plan.least_tokens
        self.trainer.micros.max_tokens = max(least, run.max_tokens // 2) if small else run.max_tokens
        self._write_event(state.action, state.rule, state.cause)

    def _write_event(self, action: str, rule: str, cause: str) -> None:
        r = self.governor.readings
        self.write({"event": "governor", "step": self.trainer.steps_done, "action": action, "rule": rule,
                    "cause": cause, "threads": self.trainer.ops.working,
                    "micro_batch": self.trainer.micros.max_tokens, "temperature": r.temperature,
                    "available_mib": r.available >> 20})

    def _pause(self) -> None:
        self.save()
        self._release_memory()
        while self.governor.state.action == "pause" and not self.should_stop():
            self.sleep(POLL_SECONDS)
            self._look()
        self._worked_from = self.governor.clock()

    def _release_memory(self) -> None:
        """Releases memory that is not needed now: activations, and the weights' pages, which are read again later."""
        self._release_due = False
        self.trainer.arena.release()
        self.trainer.bundle.gguf.release()

    def _rest(self) -> None:
        """Rests as long as it worked if the action is "slower" and only one thread is left to slow down."""
        until = 2 * self.governor.clock() - self._worked_from
        while (self.governor.state.action == "slower" and self.trainer.ops.threads == 1
               and self.governor.clock() < until and not self.should_stop()):
            self.sleep(min(POLL_SECONDS, max(until - self.governor.clock(), 0.0)))
            self._look()
        self._worked_from = self.governor.clock()
