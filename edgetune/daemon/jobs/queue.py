"""The thread that takes jobs from the queue, one at a time, reads the events of the process that trains, and concludes.
"""

from __future__ import annotations

import logging
import threading
import time
from collections import deque
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

from ... import disk
from ...errors import (
    BudgetError,
    DiskError,
    EdgetuneError,
    FormatError,
    Interrupted,
    NotFoundError,
    TooMuchError,
    UsageError,
)
from ...machine.policy import Policy
from ...persisted import from_json
from ...runs.tables import write_step_metrics
from ...serving.answering import Answering
from ...training.config import TrainConfig
from ...training.metrics import NAME as METRICS
from ...version import __version__
from ..kinds.registry import kind_of
from ..options import AllowedPython, Limits
from ..state.adapters import Adapters
from ..state.database import dump, now
from ..state.files import Files
from ..state.shelf import Shelf
from ..threads import told
from .decide import without_scores
from .process import JobProcess, WorkerProcess
from .progress import JobProgress
from .room import Room
from .table import ENDED, Job, JobTable
from .worker import RUN, STOPPED, is_done, trained_tokens

log = logging.getLogger("edgetune.daemon")
ROOM = 64 * 2**20  # bytes that must be free before a job begins
RETRY_SECONDS = 60.0  # after the disk or memory refused
DEATHS = 3  # deaths of the process with no step between, after which the job has failed
REJUDGED = 3  # evaluations that a job repeats because the active adapter changed
KEPT = 20  # decisions of the governor


@dataclass(frozen=True)
class WorkerOptions:
    """Options for every job's process. model: the file that jobs train on. canary: a file of text, "": ours. limits:
    how far from the base an adapter may be there. room: the memory that is left now, of all processes together: for
    work that has begun (True) all of it, else without that which answers may take. python: code that clients may have
    run.
    """

    model: Path
    policy: Policy
    canary: str
    limits: Limits
    room: Callable[[bool], Room]
    python: AllowedPython


class Queue:
    """The queue of jobs, for any number of threads; `changed` of the table guards its state.

    stopping: set when the service stops. on_done: called with each job that ended, on the thread that ended it. job:
    the id of the job that runs. paused_reason: why none begins, or "". decisions: the governor's, the newest first.
    """

    def __init__(self, table: JobTable, runs: Shelf, files: Files, adapters: Adapters, batcher: Answering[Any],
                 options: WorkerOptions, stopping: threading.Event,
                 start_process: Callable[[], JobProcess] = WorkerProcess) -> None:
        self.table = table
        self.changed = table.changed
        self.runs = runs
        self.files = files
        self.adapters = adapters
        self.batcher = batcher
        self.options = options
        self.canary = read_canary(options.canary)
        self.stopping = stopping
        self.start_process = start_process
        self.on_done: list[Callable[[Job], None]] = []
        self.job: str | None = None
        self.paused_reason = ""
        self.decisions: deque[dict[str, Any]] = deque(maxlen=KEPT)
        self._retry_at = 0.0
        self._process: JobProcess | None = None
        self._progress: JobProgress | None = None
        self._deaths: tuple[str, int] = ("", 0)  # of one job's processes, with no step between
        self._rejudged: tuple[str, int] = ("", 0)  # a job, and how often it was evaluated again
        self._sending = threading.Lock()
        self.thread = threading.Thread(target=self._loop, name="jobs", daemon=True)

    def start(self) -> None:
        self.batcher.on_busy = self._send_busy
        self.thread.start()

    def stop(self) -> None:
        with self.changed:
            self.stopping.set()
            self.end_process(at_once=False)
            self.changed.notify_all()
        if self.thread.ident:
            self.thread.join()

    def end_process(self, at_once: bool) -> None:
        if self._process and at_once:
            self._process.kill()
        elif self._process:
            self._process.stop()

    def _send_busy(self, *_busy: bool) -> None:
        """Tells the process whether a request is being answered."""
        with self._sending:  # so that the newest command is the true one
            if process := self._process:
                process.send("busy" if self.batcher.busy else "free")

    @property
    def pid(self) -> int | None:
        process = self._process
        return process.pid if process else None

    def progress_of(self, id: str) -> dict[str, Any] | None:
        progress = self._progress
        return dict(progress.facts) if progress and id == self.job else None

    def forget(self, id: str) -> None:
        """Removes rows and run of a job that has ended, and calls on_done; removes old jobs with their results."""
        self.runs.discard(id)
        for call in self.on_done:
            try:
                call(self.table.get(id))
            except Exception:  # theirs; jobs must continue
                log.exception("after job %s", id)
        with suppress(EdgetuneError):  # the next job's end does it
            self.table.remove_old(self.job)
            self.files.remove_results_of_no_job()

    def _keep_results(self, id: str) -> None:
        """Keeps the table of steps of the training, even of part of it, before the job's end is recorded."""
        run = self.runs.path(id) / RUN
        if not (run / METRICS).exists():
            return
        try:
            self.files.add_result(id, partial(write_step_metrics, run))
        except Exception as error:  # also of a damaged file: no reason to fail, or to train again
            log.warning("%s: its table of steps is not kept: %s", id, told(error))

    # ---- the queue ----------------------------------------------------------------------------------------------

    def _loop(self) -> None:
        while not self.stopping.is_set():
            try:
                self._attempt()
            except EdgetuneError as error:  # of the disk, or the database
                self._pause(error.what)
            except Exception as error:  # after any error the next jobs need this thread
                log.exception("jobs")
                self._pause(f"{type(error).__name__}: {error}")
            finally:
                self.job = None

    def _attempt(self) -> None:
        """Runs one job until it ends, is paused or cannot continue."""
        if id := self._next():
            try:
                self._run(self.table.get(id))
            except (DiskError, TooMuchError, Interrupted):  # not of the job, which another try may finish
                raise
            except Exception as error:
                if disk.may_pass(error) or not self.runs.is_there():
                    raise
                log.exception("job %s", id)
                self._fail(id, type(error).__name__, told(error))
                self.forget(id)

    def _next(self) -> str | None:
        """Returns the next job; None: the service stops. Raises DiskError where the disk has no room."""
        with self.changed:
            while not self.stopping.is_set():
                if (wait := self._retry_at - time.monotonic()) <= 0:
                    found = self.table.next()
                    if found or self.paused_reason:
                        disk.require_room(self.runs.folder, ROOM)
                        self.paused_reason = ""
                    if found:
                        self.job = found
                        self._progress = None
                        return found
                self.changed.wait(wait if wait > 0 else None)
        return None

    def _pause(self, why: str) -> None:
        """Pauses the queue; the job remains in it. why: a sentence."""
        self.paused_reason = f"no training for now: {why}"
        self._retry_at = time.monotonic() + RETRY_SECONDS
        log.warning("%s", self.paused_reason)

    # ---- one job ------------------------------------------------------------------------------------------------

    def _run(self, job: Job) -> None:
        kind = kind_of(job.origin)
        made = kind.kept(self.adapters, job)
        self._progress = kind.progress(self.table, job.id)
        with self.changed:
            status: str = self.table.get(job.id).status
            if made and status == "running":  # the daemon was killed before it could say so
                status = self._finish(job, made.verdict)
            elif status in ("queued", "running") and not self.stopping.is_set():
                task = self._task(job)
                self.table.set(job.id, "running", "resumed" if job.started_at else "begun",
                               started_at=job.started_at or now())
                self._process = self.start_process()
        if self._process:
            against = task["serving"] and task["serving"]["id"]
            self._conclude(job, against, *self._listen(self._process, task))
        elif status in ENDED:
            self.forget(job.id)

    def _listen(self, process: JobProcess, task: Mapping[str, Any]) -> tuple[dict[str, Any], int]:
        """Returns last event and exit code of a process. Raises DiskError where its history was not written."""
        last: dict[str, Any] = {}
        refused: DiskError | None = None
        try:
            process.begin(task)  # not with `changed` held: that takes until the process reads
            self._send_busy()
            for last in process.events():
                try:
                    self._on_event(last)
                except DiskError as error:
                    refused = error
                    process.stop()
            if self._progress:
                self._progress.write()
        except BaseException:
            process.kill()
            raise
        finally:
            code = process.wait()
            self._process = None
        if refused:
            raise refused
        return last, code

    def _task(self, job: Job) -> dict[str, Any]:
        config = from_json(TrainConfig, job.config, f"the options of {job.id}")
        folder = self.runs.path(job.id)
        if not folder.is_dir() and not self.runs.is_there():
            raise DiskError(f"{folder}, with the rows of {job.id}, is not there", "mount its disk, or cancel the job")
        if not folder.is_dir():
            raise NotFoundError(f"{folder}, with the rows of {job.id}, is gone", "begin another job")
        kind = kind_of(job.origin)
        room = self.options.room(kind.has_begun(folder))
        serving = self.adapters.serving
        old = None
        if serving:
            old = {"id": serving, "path": str(self.adapters.path(serving)),
                   "scores": self.adapters.get(serving).verdict.get("scores", {})}
        return {"version": __version__, "model": str(self.options.model), "folder": str(folder), "method": job.method,
                "kind": {"module": type(kind).__module__, "origin": kind.origin},
                "policy": asdict(self.options.policy), "canary": self.canary, "limits": asdict(self.options.limits),
                "python": asdict(self.options.python), "serving": old,
                "tests_before": self.table.tests_before(), "config": config.to_json(), "room": asdict(room)}

    def _conclude(self, job: Job, against: str | None, last: dict[str, Any], code: int) -> None:
        """Concludes a job. against: the adapter it was compared with, whose deletion may have failed the evaluation."""
        with self.changed:
            status: str = self.table.get(job.id).status
            if status == "running" and last.get("event") == "judged":
                status = self._finish(job, last["verdict"])
            elif status == "running" and last.get("event") == "failed" and (
                    last["disk"] or not self.runs.is_there()):
                raise DiskError(last["what"], last["hint"])
            elif status == "running" and last.get("event") == "failed" and self._may_be_judged_again(job, against):
                self._judge_again(job.id, against)
            elif status == "running" and last.get("event") == "failed" and last["resumable"]:
                self.table.set(job.id, "paused", f"paused, its work is kept: {_sentence(last)}", "warn")
            elif status == "running" and last.get("event") == "failed":
                status = self._fail(job.id, last["kind"], _sentence(last))
            elif status == "running" and code != STOPPED and not self.stopping.is_set():
                status = self._died(job.id, code)
        if status in ENDED:
            self.adapters.prune()
            self.forget(job.id)

    def _finish(self, job: Job, verdict: dict[str, Any]) -> str:
        """Finishes a job. Each part may be done twice: a kill can come between any two of them."""
        kind = kind_of(job.origin)
        made = kind.kept(self.adapters, job)
        against = verdict.get("against")
        if made is None and self._may_be_judged_again(job, against):
            return self._judge_again(job.id, against)
        run = self.runs.path(job.id) / RUN
        if made is None and not kind.leaves_adapter(run):
            if kind.trains and verdict["passed"]:
                raise FormatError(f"{run}, with the adapter that passed, is gone or not whole", "begin another job")
            shown = without_scores(verdict)
            self.table.set(job.id, "succeeded", verdict["reason"], verdict=dump(shown),
                           data=None if kind.trains else {"verdict": shown})
            return "succeeded"
        try:
            tokens = trained_tokens(run) if kind.trains else None
        except FormatError:
            if made is None:
                raise
            tokens = None  # the adapter is kept, so the job has succeeded
        try:
            made = made or kind.keep(self.adapters, job, run, verdict)
        except BudgetError as error:
            self.table.set(job.id, "paused", f"paused, its work is kept: {error}", "warn")
            return "paused"
        serves = made.state == "serving"
        reason = verdict["reason"]
        if verdict["passed"] and kind.activates(job) and (made.state == "candidate" or not kind.trains):
            serves = self.adapters.admit(made.id, f"{job.id}: {reason}", against)
            if not serves and self._may_be_judged_again(job, against):  # it changed while this one was loaded
                kind.drop(self.adapters, made)
                return self._judge_again(job.id, against)
            if not serves:
                reason = f"the active adapter changed {REJUDGED + 1} times meanwhile; promote it if you like"
        self._keep_results(job.id)
        if not kind.trains:
            verdict = {**verdict, "published": serves}
        self.table.set(job.id, "succeeded", f"{'activated' if serves else 'not activated'}: {reason}",
                       data={"adapter": made.id, "verdict": verdict}, result=made.id,
                       verdict=dump(without_scores(verdict)),
                       trained_tokens=tokens)
        return "succeeded"

    def _may_be_judged_again(self, job: Job, against: str | None) -> bool:
        """Returns whether another adapter than `against` became active meanwhile, unless this happened too often."""
        id, times = self._rejudged
        is_ready = not kind_of(job.origin).trains or is_done(self.runs.path(job.id) / RUN)
        return self.adapters.serving != against and is_ready and (id != job.id or times < REJUDGED)

    def _judge_again(self, id: str, against: str | None) -> str:
        job, times = self._rejudged
        self._rejudged = (id, times + 1 if job == id else 1)
        self.table.set(id, "running", f"evaluated again: {self.adapters.serving or 'the base'} became active while it "
                       f"was compared with {against or 'the base'}")
        return "running"

    def _fail(self, id: str, code: str, text: str) -> str:
        self._keep_results(id)
        with self.changed:
            self.table.set(id, "failed", text, "error", error=dump({"code": code, "message": text, "param": None}))
        return "failed"

    def _died(self, id: str, code: int) -> str:
        """Handles a process that ended without a reason: the kernel killed it where memory ran out, or it has a bug."""
        job, deaths = self._deaths
        self._deaths = (id, deaths + 1 if job == id else 1)
        ended_with = f"signal {-code}" if code < 0 else f"code {code}"
        how = f"the training process ended with {ended_with}"
        if self._deaths[1] >= DEATHS:
            return self._fail(id, "died", f"{how}, {DEATHS} times without a step between; see the daemon's log")
        self.table.set(id, "running", f"{how}; it resumes from what was saved", "warn")
        return "running"

    def _on_event(self, event: dict[str, Any]) -> None:
        if event["event"] == "step":
            self._deaths = ("", 0)
        elif event["event"] == "governor":
            self.decisions.appendleft({"at": now(), "action": event["action"], "cause": event["cause"]})
        elif event["event"] == "log":
            log.info("%s: %s", self.job, event["line"])
        if self._progress:
            self._progress.take(event)


def _sentence(failed: Mapping[str, Any]) -> str:
    return "; ".join(filter(None, (failed["what"], failed["hint"])))


def read_canary(named: str) -> str:
    """Returns the text whose perplexity must not rise; "": the one that is shipped. Raises UsageError."""
    from ...evaluation.canary import FILE
    path = Path(named).expanduser() if named else FILE
    try:
        return path.read_text("utf-8")
    except (OSError, ValueError) as error:
        raise UsageError(f"the canary {named} cannot be read: {error}", "name a file of plain text") from None
