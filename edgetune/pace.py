"""What a run does when the governor speaks: fewer threads, rests, smaller micro-batches, pauses, memory given back.

Only a smaller micro-batch changes what is computed, and only in the last bits: sums over tokens are taken in other
parts. It is chosen for lack of memory alone.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from typing import Any

from .governor import Governor
from .trainer import Trainer

POLL_SECONDS = 0.2  # between two looks for a reason to stop, while it pauses or rests


def be_nice(nice: int) -> None:
    """Lower the priority of this thread and of those that it starts, the workers among them; never raise it."""
    if nice > os.getpriority(os.PRIO_PROCESS, 0):
        os.setpriority(os.PRIO_PROCESS, 0, nice)


class GiveWay(Exception):
    """Raised within a micro-batch where memory must be given back now: what was begun is to be done again."""


class Pace:
    """A run's should_stop that also gives way: asked often, it acts on the governor's decision and, while that is
    pause, does not return.

    Within a micro-batch, where the arena holds activations, a pause has to wait for its end, with one thread. Only for
    lack of memory there is no waiting: GiveWay is raised.
    should_stop: the run's own. save: keeps the state before a pause. write: takes {"event": "governor", ...}. Raises
    UsageError where the run would not leave the memory that the policy asks for.
    """

    def __init__(self, governor: Governor, trainer: Trainer, should_stop: Callable[[], bool],
                 save: Callable[[], None], write: Callable[[dict[str, Any]], None],
                 sleep: Callable[[float], None] = time.sleep) -> None:
        self.governor, self.trainer, self.should_stop = governor, trainer, should_stop
        self.save, self.write, self.sleep = save, write, sleep
        governor.expect(trainer.plan.arena_bytes)
        self._worked_from, self._return_due = governor.clock(), False

    def __call__(self) -> bool:
        self._look()
        paused = self.governor.state.action == "pause"
        if self.trainer.computing:
            if paused and self.governor.state.rule == "memory":
                raise GiveWay
        else:
            if self._return_due:
                self._give_back()
            if paused and not self.should_stop():
                self._pause()
        self._rest()
        return self.should_stop()

    def _look(self) -> None:
        seen = self.governor.readings
        if self.governor.look():
            self._apply()
        if self.governor.readings is not seen:
            self._return_due = self.governor.short_of_memory

    def _apply(self) -> None:
        """Threads and micro-batch by the new state, and a line that says so."""
        state, r = self.governor.state, self.governor.readings
        ctx, run = self.trainer.decoder.ctx, self.trainer.plan.run
        ctx.working = {"go": ctx.threads, "slower": max(ctx.threads // 2, 1), "pause": 1}[state.action]
        small = state.rule == "memory" and state.action != "go"
        self.trainer.max_tokens = max(run.max_length, run.max_tokens // 2) if small else run.max_tokens
        self.write({"event": "governor", "step": self.trainer.steps_done, "action": state.action, "rule": state.rule,
                    "cause": state.cause, "threads": ctx.working, "micro_batch": self.trainer.max_tokens,
                    "temperature": r.temperature, "available_mib": r.available >> 20})

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
        while (self.governor.state.action == "slower" and self.trainer.decoder.ctx.threads == 1
               and self.governor.clock() < until and not self.should_stop()):
            self.sleep(min(POLL_SECONDS, max(until - self.governor.clock(), 0.0)))
            self._look()
        self._worked_from = self.governor.clock()
