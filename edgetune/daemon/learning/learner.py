"""Learning from use: when enough feedback has arrived and no request is disturbed, a job begins by itself.

A job over feedback trains from the base, in the order of curriculum.py. The tutor's, over prompts, are tutoring.py's.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

from ...data.dataset import load_rows
from ...errors import DataError, DiskError, EdgetuneError, NotFoundError, TooMuchError, UsageError
from ...machine.governor import Governor
from ...machine.policy import read_hours, within
from ...serving.batcher import Batcher
from ...training.anchored import rows_per_anchor
from ...training.length import batch_of, peak_rate, reading_limit
from ..jobs.jobs import JobData, Jobs
from ..jobs.table import Job
from ..jobs.tutored import TUTOR
from ..options import DaemonConfig
from ..state.holdout import SHARE
from .curriculum import JobRows, curriculum, least_rows, passes_over
from .feedback import Feedback, TrainingRows
from .method import LearnMethod
from .tutoring import Tutoring

log = logging.getLogger("edgetune.daemon")
LEARN = "learn"  # the origin of jobs over feedback
SWITCH = "learning"  # its name in the database
SUFFIX = "learned"  # of the adapters that its jobs make
ANEW = "anew"  # in the metadata of jobs that learn all that was learned before, as if it were new
IDLE_SECONDS = 600.0  # without a request, then --learn idle begins
CHECK_SECONDS = 5.0
RETRY_SECONDS = 60.0  # after the disk refused, or something broke
WAITS = ("waits", "unfinished", "again")  # in a verdict: nothing speaks against its rows; the last two of 0.1.0


@dataclass(frozen=True)
class Clocks:
    """local: the time of day, for hours. monotonic: seconds, for how long the daemon was idle."""

    local: Callable[[], time.struct_time] = time.localtime
    monotonic: Callable[[], float] = time.monotonic


class Learner:
    """Begins jobs over feedback, and records what became of each row. For any number of threads.

    method: by which its jobs learn. governor: says when the machine has no capacity for a job. tutoring: None where it
    does not ask prompts. paused_reason: why it does not learn by itself now because something failed, in a sentence for
    the daemon's health, or "".
    """

    def __init__(self, feedback: Feedback, method: LearnMethod, jobs: Jobs, batcher: Batcher,
                 governor: Governor, config: DaemonConfig, stopping: threading.Event,
                 clocks: Clocks | None = None, tutoring: Tutoring | None = None) -> None:
        self.feedback = feedback
        self.method = method
        self.jobs = jobs
        self.batcher = batcher
        self.governor = governor
        self.config = config
        self.stopping = stopping
        self.clocks = clocks or Clocks()
        self.tutoring = tutoring
        self.paused_reason = ""
        self._failed: tuple[int, str] | None = None  # rows that waited when a job failed, and why it did
        self._failed_to_tutor: tuple[int, str] | None = None  # the same of prompts
        self._retry_at = 0.0  # on the monotonic clock
        self._learnable: set[str] = set()  # waiting items that were found to fit the model
        self._beginning = threading.Lock()
        self.thread = threading.Thread(target=self._loop, name="learn", daemon=True)

    def start(self) -> None:
        self.jobs.on_done.append(self._settle)
        self._settle_ended()
        if self.tutoring is None and (job := self.jobs.unfinished(TUTOR)):
            self.jobs.cancel(job)  # of a daemon that tutored
        if self.config.learn != "off":
            self.thread.start()

    def stop(self) -> None:
        self.stopping.set()
        if self.thread.ident:
            self.thread.join()

    def why(self) -> dict[str, Any]:
        """on: whether it may begin by itself; mode, method, new_rows that wait, how many are needed, as `state` why
        nothing is learned now, or what is, as `unused` what the method cannot learn from, a sentence or "", and as
        `tutor` the prompts, how many new ones are needed, its state likewise, and the rounds of its latest job; None
        where there is no tutor.
        """
        waiting = self.feedback.waiting()
        state = self._blocked_by(waiting) or "begins to learn"
        if self.config.learn == "off" and not self._unfinished():
            state = "learns when it is told to, not by itself"
        unused = self.method.unused(self.feedback.unusable())
        return {"on": self.is_on, "mode": self.config.learn, "method": self.method.objective.name, "new_rows": waiting,
                "needed": self.config.learn_rows, "state": state, "unused": unused, "tutor": self._tutor_state()}

    def begin(self, everything: bool = False) -> Job:
        """A job over all feedback that is new. everything: over all that was learned, as if it were new, and nothing
        else.

        Raises TooMuchError where another thread begins one, UsageError where one is not finished, or there is too
        little to learn or to judge by; errors of Jobs.
        """
        with self._alone():
            if unfinished := self._unfinished():
                raise UsageError(f"{unfinished} is not finished", "wait for it, or cancel it")
            self._settle_ended()
            self._set_aside_unlearnable(self.feedback.learned_ids() if everything else self.feedback.waiting_ids())
            rows = self.feedback.learned_rows() if everything else self.feedback.training_rows()
            _check_enough(rows, everything)
            job = self._create(rows)
            self.feedback.assign(rows.taken, job.id)
            return job

    def begin_rounds(self) -> Job:
        """A job of the tutor over the prompts that are kept. Raises as `begin`, and UsageError without a tutor."""
        if self.tutoring is None:
            raise UsageError(f"learn is {self.config.learn}, and no prompts are learned from",
                             "start the daemon with --learn tutor and --keep-prompts 1000")
        with self._alone():
            if unfinished := self._unfinished():
                raise UsageError(f"{unfinished} is not finished", "wait for it, or cancel it")
            return self.tutoring.begin()

    # ---- the switch ---------------------------------------------------------------------------------------------

    @property
    def is_on(self) -> bool:
        """Whether jobs may begin by themselves, as far as people say. It is remembered."""
        return not self.feedback.store.read("SELECT 1 FROM switches WHERE name = ?", SWITCH)

    def switch(self, on: bool) -> None:
        """Off: no job begins by itself, and those that are not finished are paused. On: these are resumed."""
        with self.feedback.store.write() as db:
            db.execute("INSERT OR REPLACE INTO switches (name) VALUES (?)" if not on else
                       "DELETE FROM switches WHERE name = ?", (SWITCH,))
        for origin in (LEARN, TUTOR):
            job = self.jobs.unfinished(origin)
            with suppress(UsageError):  # it is so already, or ended meanwhile
                if job:
                    (self.jobs.resume if on else self.jobs.pause)(job)

    def _create(self, rows: TrainingRows) -> Job:
        """It has anchors as a training has whose length the data decides: beside right answers, unless the options say
        otherwise; and batch and learning rate of a training on as many different rows.
        """
        kind = self.method.kind
        train = self.method.train(self.jobs.train)
        passes = passes_over(len(rows.new), train)
        different = len(rows.new) + len(rows.earlier)
        learned = curriculum(rows.new, rows.earlier, passes, self.config.replay, train.seed,
                             least_rows(different, train), least_rows(len(rows.earlier), train))
        anchors = rows_per_anchor(replace(train, epochs="auto", steps=0), self.method.objective)
        counts = {"new": str(len(rows.new)), "earlier": str(len(rows.earlier)), "held": str(len(rows.held)),
                  **({} if rows.taken else {ANEW: "yes"})}
        data = JobData(JobRows(self.feedback, learned, kind.learned),
                       JobRows(self.feedback, rows.held, lambda item: [kind.judged(item)]), rows.rounds,
                       JobRows(self.feedback, [row for row in rows.new if row.has_answer]),
                       () if self.method.imitates else JobRows(self.feedback, rows.held, kind.learned))
        return self.jobs.create_from_feedback(data, self.method.asked, suffix=SUFFIX, metadata=counts,
                                              hyperparameters={
                                                  "epochs": 1.0, "steps": 0, "shuffle": False, "anchors": anchors,
                                                  "batch_size": batch_of(train, different),
                                                  "lr": peak_rate(train, different)})

    @contextmanager
    def _alone(self) -> Iterator[None]:
        if not self._beginning.acquire(blocking=False):
            raise TooMuchError("a training over feedback is being begun already", "ask again in a minute")
        try:
            yield
        finally:
            self._beginning.release()

    def remains_of_prompts(self) -> str:
        """Where deleted prompts still are: a sentence, or ""."""
        job = self.jobs.unfinished(TUTOR)
        return f"{job} is not finished and may ask them yet; cancel it to be rid of them at once" if job else ""

    # ---- when ---------------------------------------------------------------------------------------------------

    def _loop(self) -> None:
        while not self.stopping.wait(CHECK_SECONDS):
            if time.monotonic() >= self._retry_at:
                self._check()

    def _check(self) -> None:
        """Begin a job if nothing blocks it. Whatever goes wrong is reported, and does not end the thread."""
        try:
            waiting = self.feedback.waiting()
            if not self._blocked_by(waiting):
                self._failed = self._begin_by_itself(waiting, self.begin, f"learn from {waiting} rows")
            elif self._is_compaction_due() and not (self._unfinished() or self._not_now()):
                self._begin_or_wait(partial(self.begin, everything=True), "learn all anew")
            elif self.tutoring and not self._tutor_blocked_by(asked := self.tutoring.prompts.waiting()):
                self._failed_to_tutor = self._begin_by_itself(asked, self.begin_rounds, f"ask {asked} new prompts")
            self.paused_reason = ""
        except Exception as error:
            self._retry_at = time.monotonic() + RETRY_SECONDS
            if isinstance(error, EdgetuneError):
                self.paused_reason = f"does not learn by itself: {error.what}"
                log.warning("%s", self.paused_reason)
            else:
                self.paused_reason = f"does not learn by itself: {type(error).__name__}: {error}"
                log.exception("learning")

    def _begin_by_itself(self, waiting: int, begin: Callable[[], Job], to: str) -> tuple[int, str] | None:
        """Why these rows or prompts cannot be learned from, as `_failed` has it. Raises what is not due to them, and
        may be better in a minute.
        """
        try:
            self._begin_or_wait(begin, to)
        except DiskError:
            raise
        except EdgetuneError as error:
            log.warning("does not %s: %s", to, error)
            return waiting, str(error)
        return None

    def _begin_or_wait(self, begin: Callable[[], Job], to: str) -> None:
        """Looks again in a moment where another thread begins one, or there are too many."""
        try:
            log.info("%s begins to %s", begin().id, to)
        except TooMuchError as error:
            log.info("does not %s now: %s", to, error)

    def _tutor_state(self) -> dict[str, Any] | None:
        if self.tutoring is None:
            return None
        counts = self.tutoring.prompts.counts()
        state = self._tutor_blocked_by(counts["new"]) or "begins to ask prompts"
        return {"prompts": counts, "needed": self.config.tutor_prompts, "state": state,
                "rounds": self.jobs.latest_rounds()}

    def _tutor_blocked_by(self, waiting: int) -> str:
        """Why no rounds begin now, in a sentence; "": nothing blocks them."""
        missing = self.config.tutor_prompts - waiting
        if begun := self._begun_or_off():
            return begun
        if missing > 0:
            return f"waits for {missing} more prompt{'' if missing == 1 else 's'}"
        if self._failed_to_tutor and waiting <= self._failed_to_tutor[0]:
            return f"waits for more prompts, since {self._failed_to_tutor[1]}"
        return self._not_now()

    def _blocked_by(self, waiting: int) -> str:
        """Why no job begins by itself now, in a sentence; "": nothing blocks it."""
        needed = self.config.learn_rows
        if begun := self._begun_or_off():
            return begun
        if waiting < needed:
            missing = needed - waiting
            return f"waits for {missing} more {'piece' if missing == 1 else 'pieces'} of feedback"
        if self._failed and waiting <= self._failed[0]:
            return f"waits for more feedback, since {self._failed[1]}"
        return self._not_now()

    def _begun_or_off(self) -> str:
        job = self._unfinished()
        return f"learns: {job}" if job and self.is_on else self._switched_off()

    def _switched_off(self) -> str:
        return "" if self.is_on else "is switched off: nothing is learned by itself"

    def _not_now(self) -> str:
        return self._switched_off() or self.jobs.paused_reason or self._too_early() or self._too_much()

    def _is_compaction_due(self) -> bool:
        every = self.config.compact_every
        return every > 0 and self.jobs.lessons_since(ANEW) >= every

    def _too_early(self) -> str:
        if self.config.learns_at_night:
            hours = self.config.learn_hours
            local = self.clocks.local()
            if within(local.tm_hour * 60 + local.tm_min, read_hours("learn-hours", hours)):
                return ""
            return f"waits for the hours {hours}"
        batcher = self.batcher
        if not batcher.busy and self.clocks.monotonic() >= batcher.idle_since + IDLE_SECONDS:
            return ""
        return f"waits until nobody asks for {IDLE_SECONDS / 60:g} minutes"

    def _too_much(self) -> str:
        """For the machine, by the policy."""
        if not self.governor.policy.govern:
            return ""
        self.governor.look()
        state = self.governor.state
        return f"waits: {state.cause}" if state.action == "pause" else ""

    def _unfinished(self) -> str | None:
        return self.jobs.unfinished(LEARN) or self.jobs.unfinished(TUTOR)

    # ---- rows ---------------------------------------------------------------------------------------------------

    def _set_aside_unlearnable(self, ids: Iterable[str]) -> None:
        """A single row that this model's template or context does not accept would fail every job. Each row is
        tokenized once for that.
        """
        learnable = set()
        for id in ids:
            if id in self._learnable or self._is_learnable(id):
                learnable.add(id)
        self._learnable = learnable

    def _is_learnable(self, id: str) -> bool:
        train = self.jobs.train
        kind = self.method.kind
        try:
            rows = kind.learned(self.feedback.get(id))
            if not rows:
                raise DataError("the grader does not find what it needs in it", "")
            limit = reading_limit(train.max_length, self.batcher.served.context)
            load_rows(rows, self.batcher.served.tokenizer, max_length=limit, system=train.system or None,
                      parser=kind.parser)
        except NotFoundError:  # damaged: jobs leave it out
            return False
        except DataError as error:
            log.warning("feedback %s cannot be learned: %s", id, error)
            self.feedback.set_aside(id)
            return False
        return True

    def _settle_ended(self) -> None:
        """Jobs that ended before their rows were settled, because the daemon ended as well."""
        for id in self.feedback.unsettled():
            if (job := self.jobs.get(id)).finished_at is not None:
                self._settle(job)

    def _settle(self, job: Job) -> None:
        """A job ended: what becomes of its rows."""
        if job.origin == LEARN and job.verdict and job.verdict["passed"] and self.tutoring:
            self.tutoring.prompts.renew()  # it began from the base, and knows nothing of what rounds learned
        if job.origin != LEARN or ANEW in job.metadata:  # which took nothing
            return
        verdict = job.verdict or {"passed": False}
        if job.status != "succeeded":
            self._wait_for_more(job, job.error["message"] if job.error else "it was cancelled")
        elif verdict["passed"]:
            self.feedback.settle(job.id, "used")
        elif any(verdict.get(name) for name in WAITS):
            self._wait_for_more(job, verdict["reason"])
        else:
            self.feedback.settle(job.id, "aside")

    def _wait_for_more(self, job: Job, why: str) -> None:
        """Its rows are learned together with others that come; no job begins by itself before."""
        self.feedback.settle(job.id, "new")
        self._failed = self.feedback.waiting(), f"{job.id} came to nothing: {why}"


def _check_enough(rows: TrainingRows, everything: bool) -> None:
    """Raises UsageError where there is nothing to learn, or nothing to judge by."""
    if everything and not (rows.new and rows.held):
        raise UsageError("nothing was learned from feedback yet that could be learned anew", "learn what is new")
    if everything:
        return
    if not rows.taken:
        raise UsageError("there is no new feedback to learn", "correct some answers")
    if not rows.new:
        raise UsageError(f"all new feedback, on {_questions(len(rows.fresh))}, is held out to judge by",
                         "correct answers to other questions")
    if not rows.held:
        raise UsageError(f"there is feedback on {_questions(len(rows.new))}, and none is held out to judge by",
                         f"correct answers to more questions: one of each {SHARE} is held out")


def _questions(count: int) -> str:
    return "1 question" if count == 1 else f"{count} questions"
