"""Learning from use: when enough feedback has arrived and nothing speaks against it, a job begins by itself.

The starters of each kind of job (kinds/) begin jobs and choose their rows.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import Any

from ...errors import DiskError, EdgetuneError, TooMuchError, UsageError
from ...machine.governor import Governor
from ...machine.policy import read_hours, within
from ...serving.answering import Answering
from ..jobs.jobs import Jobs
from ..jobs.table import Job
from ..kinds.base import Starter
from ..kinds.feedback import NEW
from ..kinds.registry import kinds
from ..options import IDLE_SECONDS, DaemonConfig
from ..state.database import Store

log = logging.getLogger("edgetune.daemon")
SWITCH = "learning"  # its name in the database
CHECK_SECONDS = 5.0
Obstacle = tuple[str, str]  # why no job begins: a word for programs, and a sentence
RETRY_SECONDS = 60.0  # after the disk refused, or something broke


class Learner:
    """Begins jobs, for any number of threads, and has their starters settle them.

    starters: in order of precedence. governor: says when the machine has no capacity for a job. local: the time of day,
    for --learn-hours. paused_reason: the failure after which it does not learn by itself now, in a sentence for the
    daemon's health, or "".
    """

    def __init__(self, starters: Sequence[Starter], jobs: Jobs, batcher: Answering[Any], governor: Governor,
                 config: DaemonConfig, store: Store, stopping: threading.Event,
                 local: Callable[[], time.struct_time] = time.localtime) -> None:
        self.starters = {starter.name: starter for starter in starters}
        self.jobs = jobs
        self.batcher = batcher
        self.governor = governor
        self.config = config
        self.store = store
        self.stopping = stopping
        self.local = local
        self.paused_reason = ""
        self._failed: dict[str, tuple[int, str]] = {}  # by starter: how much waited when its job failed, and why
        self._retry_at = 0.0  # on the monotonic clock
        self._beginning = threading.Lock()
        self.thread = threading.Thread(target=self._loop, name="learn", daemon=True)

    def start(self) -> None:
        self.jobs.on_done.append(self.settle)
        self._settle_ended()
        have = {starter.origin for starter in self.starters.values()}
        for origin, kind in kinds().items():
            if kind.starts and origin not in have and (job := self.jobs.table.unfinished(origin)):
                self.jobs.cancel(job)  # of a daemon with other options
        if self.config.learn != "off":
            self.thread.start()

    def stop(self) -> None:
        self.stopping.set()
        if self.thread.ident:
            self.thread.join()

    def threads(self) -> Sequence[threading.Thread]:
        return [self.thread]

    def reasons(self) -> Sequence[str]:
        return [self.paused_reason] if self.paused_reason else []

    def begin(self, name: str = NEW) -> Job:
        """Begins a job of the starter with this name.

        Raises TooMuchError where another thread begins one, UsageError where one is not finished, where this daemon has
        no such starter, or there is too little to learn or to evaluate by; errors of Jobs.
        """
        if name not in self.starters:
            hint = next((kind.starts[name] for kind in kinds().values() if name in kind.starts),
                        f"choose from {', '.join(self.starters)}")
            raise UsageError(f"learn is {self.config.learn}, and no {name} are learned from", hint)
        if not self._beginning.acquire(blocking=False):
            raise TooMuchError("a job is being begun already", "ask again in a minute")
        try:
            if unfinished := self._unfinished():
                raise UsageError(f"{unfinished} is not finished", "wait for it, or cancel it")
            self._settle_ended()
            return self.starters[name].begin()
        finally:
            self._beginning.release()

    def unfinished(self, name: str) -> str | None:
        """Returns the job of a starter's origin that has not ended; None also without such a starter."""
        return self.jobs.table.unfinished(self.starters[name].origin) if name in self.starters else None

    # ---- the switch ---------------------------------------------------------------------------------------------

    @property
    def is_on(self) -> bool:
        """Returns whether people allow jobs to begin by themselves. It is remembered."""
        return not self.store.read("SELECT 1 FROM switches WHERE name = ?", SWITCH)

    def switch(self, on: bool) -> None:
        """Turns learning off or on. Off: no job begins by itself, unfinished ones are paused. On: they resume."""
        with self.store.write() as db:
            db.execute("INSERT OR REPLACE INTO switches (name) VALUES (?)" if not on else
                       "DELETE FROM switches WHERE name = ?", (SWITCH,))
        for name in self.starters:
            with suppress(UsageError):  # it is so already, or ended meanwhile
                if job := self.unfinished(name):
                    (self.jobs.resume if on else self.jobs.pause)(job)

    # ---- the state ----------------------------------------------------------------------------------------------

    def state(self, now: float | None = None) -> dict[str, Any]:
        """Returns on (whether it may begin by itself), mode (--learn), learns (when that is, in words), the facts of
        the starter for new feedback, `waits`: a word for why no job over feedback begins now, or "", and `state`: that
        in a sentence. Facts of other kinds follow under their origins.
        """
        found: dict[str, Any] = {"on": self.is_on, "mode": self.config.learn, "learns": self.config.learns}
        for name, starter in self.starters.items():
            facts = {**starter.facts(), "needed": starter.needed}
            obstacle = self._obstacle(starter, starter.waiting(), now)
            facts["waits"], facts["state"] = obstacle or ("", f"begins to {starter.doing}")
            if name == NEW:
                found |= facts
                if self.config.learn == "off" and not self._unfinished():
                    found["waits"], found["state"] = "told", "waits until it is told to learn"
            elif starter.origin != self.starters[NEW].origin:
                found[starter.origin] = facts
        return found

    def _obstacle(self, starter: Starter, waiting: int, now: float | None) -> Obstacle | None:
        """Returns why no job of a starter begins by itself now; None: nothing prevents it."""
        if not self.is_on:
            return "off", "is switched off: nothing is learned by itself"
        if job := self._unfinished():
            if self.jobs.get(job).status == "paused":
                return "paused", f"waits: {job} is paused, resume or cancel it"
            return "job", f"learns: {job}"
        if waiting < starter.needed:
            return "rows", f"waits for {starter.lacks(starter.needed - waiting)}"
        failed = self._failed.get(starter.name)
        if failed and waiting <= failed[0]:
            return "failed", f"waits for more {starter.material}, since {failed[1]}"
        if reason := self.jobs.paused_reason:
            return "jobs", reason
        return self._too_early(now) or self._too_much()

    def _too_early(self, now: float | None) -> Obstacle | None:
        if self.config.learn.endswith("nightly"):
            hours = self.config.learn_hours
            local = self.local()
            if within(local.tm_hour * 60 + local.tm_min, read_hours("learn-hours", hours)):
                return None
            return "time", f"waits for the hours {hours}"
        now = time.monotonic() if now is None else now
        if not self.batcher.busy and now >= self.batcher.idle_since + IDLE_SECONDS:
            return None
        return "time", f"waits until nobody asks for {IDLE_SECONDS / 60:g} minutes"

    def _too_much(self) -> Obstacle | None:
        """Returns why the machine has no capacity, by the policy."""
        if not self.governor.policy.govern:
            return None
        self.governor.look()
        state = self.governor.state
        return ("machine", f"waits: {state.cause}") if state.action == "pause" else None

    def _unfinished(self) -> str | None:
        return next(filter(None, map(self.unfinished, self.starters)), None)

    # ---- when ---------------------------------------------------------------------------------------------------

    def _loop(self) -> None:
        while not self.stopping.wait(CHECK_SECONDS):
            self.tick()

    def tick(self, now: float | None = None) -> None:
        """Begins a job if nothing prevents it. Errors are reported, and do not end the thread."""
        now = time.monotonic() if now is None else now
        if now < self._retry_at:
            return
        try:
            self._settle_ended()  # the disk may have refused when they ended
            for starter in self.starters.values():
                waiting = starter.waiting()
                if starter.needed and not self._obstacle(starter, waiting, now):
                    self._begin_by_itself(starter, waiting)
                    break
            self.paused_reason = ""
        except Exception as error:
            self._retry_at = now + RETRY_SECONDS
            if isinstance(error, EdgetuneError):
                self.paused_reason = f"does not learn by itself: {error.what}"
                log.warning("%s", self.paused_reason)
            else:
                self.paused_reason = f"does not learn by itself: {type(error).__name__}: {error}"
                log.exception("learning")

    def _begin_by_itself(self, starter: Starter, waiting: int) -> None:
        """Begins a job; after a failure waits for more material. Raises errors that may pass in a minute."""
        self._failed.pop(starter.name, None)
        try:
            log.info("%s begins to %s", self.begin(starter.name).id, starter.doing)
        except TooMuchError as error:  # another thread begins one, or there are too many
            log.info("does not %s now: %s", starter.doing, error)
        except DiskError:
            raise
        except EdgetuneError as error:
            log.warning("does not %s: %s", starter.doing, error)
            self._failed[starter.name] = waiting, str(error)

    # ---- after a job --------------------------------------------------------------------------------------------

    def settle(self, job: Job) -> None:
        """Lets the starters settle a job that ended."""
        for starter in self.starters.values():
            if why := starter.settle(job):
                self._failed[starter.name] = starter.waiting(), why

    def _settle_ended(self) -> None:
        """Settles jobs that ended before they were settled, because the daemon ended as well, or the disk was full."""
        for starter in self.starters.values():
            for id in starter.unsettled():
                if (job := self.jobs.get(id)).finished_at is not None:
                    self.settle(job)
