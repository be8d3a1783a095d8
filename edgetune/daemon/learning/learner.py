"""Learning from use: when enough feedback has gathered and it disturbs nobody, a job begins by itself.

A job begins at the base. It goes once through all that was learned before, the oldest first, and then some times
through what is new, mixed with as much of the old: what is new counts more than its number, so that the gate sees
clearly whether it does good or harm. In between come anchors, what the base itself says to questions of all kinds and
writes about them, which keep what it says elsewhere as it was.
"""

from __future__ import annotations

import logging
import random
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from itertools import cycle
from typing import Any

from ...data.dataset import load_rows
from ...data.rows import as_messages
from ...errors import DataError, DiskError, EdgetuneError, Interrupted, TooMuchError, UsageError
from ...machine.governor import Governor
from ...machine.policy import read_hours, within
from ...serving.batcher import Batcher
from ..jobs.jobs import Jobs
from ..jobs.table import Job
from ..options import DaemonConfig
from ..state.holdout import LEAST
from .anchors import Anchors
from .feedback import Feedback
from .items import Row, Rows

log = logging.getLogger("edgetune.daemon")
SUFFIX = "learned"  # of the adapters that come of it
IDLE_SECONDS = 600.0  # without a request, and --learn idle begins
CHECK_SECONDS = 5.0
RETRY_SECONDS = 60.0  # after the disk refused, or something broke
PASSES = 2  # through what is new
ROWS_AN_ANCHOR = 5  # after so many rows comes an anchor


class Learner:
    """Begins jobs over feedback, and says of each row what came of it. For any number of threads.

    jobs, anchors: where its jobs go, and what is mixed into their rows. governor: says when the machine has no place
    for a job. local, clock: as the governor's. trouble: what is wrong with learning by itself, in a sentence for the
    daemon's health, or "".
    """

    def __init__(self, feedback: Feedback, jobs: Jobs, anchors: Anchors, batcher: Batcher, governor: Governor,
                 config: DaemonConfig, stopping: threading.Event, *,
                 local: Callable[[], time.struct_time] = time.localtime,
                 clock: Callable[[], float] = time.monotonic) -> None:
        self.feedback = feedback
        self.jobs = jobs
        self.anchors = anchors
        self.batcher = batcher
        self.governor = governor
        self.config = config
        self.stopping = stopping
        self.local = local
        self.clock = clock
        self.trouble = ""
        self._failed: tuple[int, str] | None = None  # rows that waited when a job came to nothing, and why it did
        self._again_at = 0.0  # on the machine's clock
        self._takeable: set[str] = set()  # notes that wait, of which the model can learn
        self._beginning = threading.Lock()
        self._thread = threading.Thread(target=self._loop, name="learn", daemon=True)

    def start(self) -> None:
        self.jobs.on_done.append(self._settle)
        self._settle_ended()
        if self.config.learn != "off":
            self._thread.start()

    def stop(self) -> None:
        self.stopping.set()
        if self._thread.ident:
            self._thread.join()

    def why(self) -> dict[str, Any]:
        """mode, new_rows that wait, how many are needed, and as `state` why nothing is learned now, or what is."""
        waiting = self.feedback.waiting()
        hindrance = self._hindrance(waiting)
        if self.config.learn == "off" and not self._unfinished():
            hindrance = "learns when it is told to, not by itself"
        return {"mode": self.config.learn, "new_rows": waiting, "needed": self.config.learn_rows,
                "state": hindrance or "begins to learn"}

    def begin(self) -> Job:
        """A job over all feedback that is new. Some take a minute to begin, while anchors are made.

        Raises TooMuchError where another thread begins one, UsageError where one is not finished, or there is too
        little to learn or to judge by, Interrupted where the service stops; errors of Jobs.
        """
        with self._alone():
            if unfinished := self._unfinished():
                raise UsageError(f"{unfinished} is not finished", "wait for it, or cancel it")
            self._settle_ended()
            self._sort_out()
            lesson = self.feedback.lesson()
            if not lesson.new:
                raise UsageError("there is no new feedback to learn", "correct some answers")
            if len(lesson.held) < LEAST:
                raise UsageError(f"{len(lesson.held)} rows of feedback judge, {LEAST} are needed",
                                 "correct more answers: one in five is held out")
            seed = self.jobs.train.seed
            rows = curriculum(lesson.new, lesson.earlier, self.config.replay, seed)
            rows = anchored(rows, self.anchors.rows(len(rows) // ROWS_AN_ANCHOR), seed)
            job = self.jobs.create_from_rows(alike(rows), alike(lesson.held), suffix=SUFFIX, hyperparameters={
                "epochs": 1.0, "steps": 0, "shuffle": False}, metadata={
                "new": str(len(lesson.new)), "earlier": str(len(lesson.earlier)), "held": str(len(lesson.held))},
                origin="learn", established=len(lesson.established))
            self.feedback.assign(lesson.ids, job.id)
            return job

    @contextmanager
    def _alone(self) -> Iterator[None]:
        """To wait for another thread would occupy this one for as long as anchors are made."""
        if not self._beginning.acquire(blocking=False):
            raise TooMuchError("a training over feedback is being begun already", "ask again in a minute")
        try:
            yield
        finally:
            self._beginning.release()

    # ---- when ---------------------------------------------------------------------------------------------------

    def _loop(self) -> None:
        while not self.stopping.wait(CHECK_SECONDS):
            if time.monotonic() >= self._again_at:
                self._look()

    def _look(self) -> None:
        """Begin a job if nothing is in the way. Whatever goes wrong is said, and does not end the thread."""
        try:
            waiting = self.feedback.waiting()
            if not self._hindrance(waiting):
                self._begin_by_itself(waiting)
            self.trouble = ""
        except Exception as error:
            self._again_at = time.monotonic() + RETRY_SECONDS
            if isinstance(error, EdgetuneError):
                self.trouble = f"does not learn by itself: {error.what}"
                log.warning("%s", self.trouble)
            else:
                self.trouble = f"does not learn by itself: {type(error).__name__}: {error}"
                log.exception("learning")

    def _begin_by_itself(self, waiting: int) -> None:
        """Raises what is not due to the rows, and may be better in a minute."""
        try:
            log.info("%s begins to learn from %d rows", self.begin().id, waiting)
        except DiskError:
            raise
        except (TooMuchError, Interrupted) as error:  # begun by somebody else, or at the end of the service
            log.info("does not learn now: %s", error)
        except EdgetuneError as error:
            self._failed = waiting, str(error)
            log.warning("does not learn: %s", error)

    def _hindrance(self, waiting: int) -> str:
        """Why no job begins by itself now, in a sentence; "": nothing is in the way."""
        needed = self.config.learn_rows
        if job := self._unfinished():
            return f"learns: {job}"
        if waiting < needed:
            return f"waits for {needed - waiting} more rows of feedback"
        if self._failed and waiting <= self._failed[0]:
            return f"waits for more feedback, since {self._failed[1]}"
        return self.jobs.trouble or self._too_early() or self._too_much()

    def _too_early(self) -> str:
        local = self.local()
        batcher = self.batcher
        if self.config.learn == "nightly":
            hours = self.config.learn_hours
            awaited = not within(local.tm_hour * 60 + local.tm_min, read_hours("learn-hours", hours))
            return f"waits for the hours {hours}" if awaited else ""
        left = IDLE_SECONDS if batcher.busy else batcher.idle_since + IDLE_SECONDS - self.clock()
        return f"waits until nobody asks for {IDLE_SECONDS / 60:g} minutes" if left > 0 else ""

    def _too_much(self) -> str:
        """For the machine, by the policy."""
        if not self.governor.policy.govern:
            return ""
        self.governor.look()
        state = self.governor.state
        return f"waits: {state.cause}" if state.action == "pause" else ""

    def _unfinished(self) -> str | None:
        return self.jobs.unfinished("learn")

    # ---- what ---------------------------------------------------------------------------------------------------

    def _sort_out(self) -> None:
        """Set aside what this model's template or context does not take: a single row of it would fail each job. A row
        is tokenized for that once.
        """
        tokenizer = self.batcher.served.tokenizer
        train = self.jobs.train
        notes = self.feedback.fresh()
        known = self._takeable
        self._takeable = {note.id for note in notes}
        for note in notes:
            if note.id in known:
                continue
            try:
                load_rows(alike([note.row or {}]), tokenizer, max_length=train.max_length, system=train.system or None)
            except DataError as error:
                log.warning("feedback %s cannot be learned: %s", note.id, error)
                self.feedback.set_aside(note.id)
                self._takeable.discard(note.id)

    def _settle_ended(self) -> None:
        """Jobs that ended and nobody has said so yet, be it because the daemon ended as well."""
        for id in self.feedback.unsettled():
            if (job := self.jobs.get(id)).finished_at is not None:
                self._settle(job)

    def _settle(self, job: Job) -> None:
        """A job ended: what becomes of its rows."""
        if job.origin != "learn":
            return
        if job.status == "succeeded":
            passed = job.verdict is not None and job.verdict["passed"]
            self.feedback.settle(job.id, "used" if passed else "aside")
        else:
            self.feedback.settle(job.id, "new")
            why = job.error["message"] if job.error else "it was cancelled"
            self._failed = self.feedback.waiting(), f"{job.id} came to nothing: {why}"


def curriculum(new: Sequence[Row], earlier: Sequence[Row], replay: float, seed: int) -> Rows:
    """The rows of a job in the order in which they are learned, see above. replay: earlier rows for each new one."""
    dice = random.Random(seed)
    rows = [*earlier]
    for _ in range(PASSES):
        block = [*new, *dice.sample(earlier, min(len(earlier), round(replay * len(new))))]
        dice.shuffle(block)
        rows += block
    return rows


def anchored(rows: Sequence[Row], anchors: Sequence[Row], seed: int) -> Rows:
    """The same with an anchor after each ROWS_AN_ANCHOR, none twice before all were there."""
    following = cycle(random.Random(seed).sample(anchors, len(anchors)))
    mixed: list[Row] = []
    for number, row in enumerate(rows, start=1):
        mixed.append(row)
        if anchors and number % ROWS_AN_ANCHOR == 0:
            mixed.append(next(following))
    return mixed



def alike(rows: Sequence[Row]) -> Sequence[Row]:
    """Rows of one shape beside text: where some are messages, prompt and completion become messages too, which means
    the same.
    """
    return [_messages(row) for row in rows] if any("messages" in row for row in rows) else rows


def _messages(row: Row) -> Row:
    if "prompt" not in row:
        return row
    others = {key: value for key, value in row.items() if key not in ("prompt", "completion")}
    return {**others, "messages": as_messages(row["prompt"], row["completion"])}
