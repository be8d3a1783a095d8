"""What a run does when the governor speaks: fewer threads, rests, smaller micro-batches, pauses, memory given back.

Only a smaller micro-batch changes what is computed, and only in the last bits: sums over tokens are taken in other
parts. It is chosen for lack of memory alone.
"""

from __future__ import annotations

import math
import os
import time
from collections.abc import Callable
from typing import Any

from ..machine.governor import CHANGE_SECONDS, Governor
from .trainer import Trainer

POLL_SECONDS = 0.2  # between two looks for a reason to stop, while it pauses or rests
YIELD_SECONDS = 0.01  # between two looks whether an answer is done
YIELD_SHARE = 9  # while answers last, it sleeps so many times as long as it works


def be_nice(nice: int) -> None:
    """Lower the priority of this thread and of those that it starts, the workers among them; never raise it."""
    if nice > os.getpriority(os.PRIO_PROCESS, 0):
        os.setpriority(os.PRIO_PROCESS, 0, nice)


class MemoryPressure(Exception):
    """Raised within a micro-batch where memory must be given back now: what was begun is to be done again."""


class AnswerPriority:
    """Gives way to whoever is being answered: called between two pieces of work, it sleeps while `busy`, but keeps a
    tenth of the time, so that work advances although answers never end.
    """

    def __init__(self, busy: Callable[[], bool], clock: Callable[[], float] = time.monotonic,
                 sleep: Callable[[float], None] = time.sleep) -> None:
        self.busy = busy
        self.clock = clock
        self.sleep = sleep
        self.worked_from = clock()

    def __call__(self, called_off: Callable[[], bool] = lambda: False) -> bool:
        """Whether it slept. called_off: asked meanwhile, ends the sleep."""
        began = self.clock()
        slept = False
        until = began + YIELD_SHARE * (began - self.worked_from)
        while self.busy() and self.clock() < until and not called_off():
            self.sleep(min(YIELD_SECONDS, max(until - self.clock(), 0.0)))
            slept = True
        self.worked_from = self.clock()
        return slept


class Throttle:
    """A run's should_stop that also gives way: asked often, it acts on the governor's decision and, while that is
    pause, does not return.

    Within a micro-batch, where the arena holds activations, a pause has to wait for its end, with one thread. Only for
    lack of memory there is no waiting: GiveWay is raised.
    should_stop: the run's own. save: keeps the state before a pause. write: takes {"event": "governor", ...}. busy:
    someone is being answered beside it, as `AnswerPriority` has it. Raises UsageError where the run would not leave the
    memory     that the policy asks for.
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
        self._return_due = False
        self._yield = AnswerPriority(busy, governor.clock, sleep)
        self._yield_told = -math.inf

    def __call__(self) -> bool:
        self._give_way()
        self._look()
        paused = self.governor.state.action == "pause"
        if self.trainer.computing:
            if paused and self.governor.state.rule == "memory":
                raise MemoryPressure
        else:
            if self._return_due:
                self._give_back()
            if paused and not self.should_stop():
                self._pause()
        self._rest()
        return self.should_stop()

    def _give_way(self) -> None:
        """To answers. A line says so at most every ten seconds: they may be many and short."""
        self._yield.worked_from = self._worked_from
        if self._yield(self.should_stop):
            self._worked_from = self.governor.clock()  # it has rested as well
            if self._worked_from - self._yield_told >= CHANGE_SECONDS:
                self._yield_told = self._worked_from
                self._tell("yield", "foreground", "someone is being answered, training keeps a tenth of the time")

    def _look(self) -> None:
        seen = self.governor.readings
        if self.governor.look():
            self._apply()
        if self.governor.readings is not seen:
            self._return_due = self.governor.short_of_memory

    def _apply(self) -> None:
        """Threads and micro-batch by the new state, and a line that says so."""
        state = self.governor.state
        ops = self.trainer.ops
        run = self.trainer.plan.run
        ops.working = {"go": ops.threads, "slower": max(ops.threads // 2, 1), "pause": 1}[state.action]
        small = state.rule == "memory" and state.action != "go"
        least = self.trainer.plan.longest_group
        self.trainer.max_tokens = max(least, run.max_tokens // 2) if small else run.max_tokens
        self._tell(state.action, state.rule, state.cause)

    def _tell(self, action: str, rule: str, cause: str) -> None:
        r = self.governor.readings
        self.write({"event": "governor", "step": self.trainer.steps_done, "action": action, "rule": rule,
                    "cause": cause, "threads": self.trainer.ops.working,
                    "micro_batch": self.trainer.max_tokens, "temperature": r.temperature,
                    "available_mib": r.available >> 20})

    def _pause(self) -> None:
        self.save()
        self._give_back()
        while self.governor.state.action == "pause" and not self.should_stop():
            self.sleep(POLL_SECONDS)
            self._look()
        self._worked_from = self.governor.clock()

    def _give_back(self) -> None:
        """All memory that holds nothing now: activations, and the weights' pages, which come back from the file."""
        self._return_due = False
        self.trainer.arena.release()
        self.trainer.bundle.gguf.release()

    def _rest(self) -> None:
        """Where one thread cannot become fewer, slower is to rest as long as it worked."""
        until = 2 * self.governor.clock() - self._worked_from
        while (self.governor.state.action == "slower" and self.trainer.ops.threads == 1
               and self.governor.clock() < until and not self.should_stop()):
            self.sleep(min(POLL_SECONDS, max(until - self.governor.clock(), 0.0)))
            self._look()
        self._worked_from = self.governor.clock()
