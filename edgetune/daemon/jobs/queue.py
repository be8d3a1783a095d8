"""The thread that takes jobs from the line, one at a time, listens to the process that trains, and concludes."""

from __future__ import annotations

import logging
import threading
import time
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from ... import disk
from ...errors import DiskError, EdgetuneError, TooMuchError, UsageError
from ...machine.policy import Policy
from ...persisted import from_json
from ...serving.batcher import Batcher
from ...training.config import TrainConfig
from ...version import __version__
from ..state.adapters import Adapters
from ..state.database import dump, now
from ..state.shelf import Shelf
from .process import WorkerProcess
from .table import ENDED, Job, JobTable
from .worker import RUN, STOPPED, is_done, trained_tokens

log = logging.getLogger("edgetune.daemon")
ROOM = 64 * 2**20  # bytes that must be free before a job begins
RETRY_SECONDS = 60.0  # after the disk refused
TOGETHER_SECONDS = 2.0  # steps are written together: each commit is a sync of the disk
DEATHS = 3  # of the process, with no step between, and the job has failed
SPARE = 0.9  # of the memory that is left: so that the run can resume where the daemon is a little larger another time
KEPT = 20  # decisions of the governor

Event = tuple[str, str, str, Any]  # level, type, message, data


class Queue:
    """See above; `changed` of the table guards what is here. For any number of threads.

    model: the file that jobs train on. canary: a file of text, "": ours. left_for_training: bytes that a process may
    have. stopping: is set at the end, by whoever stops the service. on_done: called with each job that ended, on the
    thread that ended it. trouble: why no job is begun for now, or "". decisions: the governor's, the newest first.
    """

    def __init__(self, table: JobTable, runs: Shelf, adapters: Adapters, batcher: Batcher, *, model: Path,
                 policy: Policy, canary: str, left_for_training: Callable[[], int], stopping: threading.Event) -> None:
        self.table = table
        self.changed = table.changed
        self.runs = runs
        self.adapters = adapters
        self.batcher = batcher
        self.model = model
        self.policy = policy
        self.canary = read_canary(canary)
        self.left_for_training = left_for_training
        self.stopping = stopping
        self.on_done: list[Callable[[Job], None]] = []
        self.job: str | None = None  # the one that is at work
        self.trouble = ""
        self.decisions: deque[dict[str, Any]] = deque(maxlen=KEPT)
        self._again_at = 0.0
        self._runner: WorkerProcess | None = None
        self._progress: dict[str, Any] = {}
        self._pending: list[Event] = []
        self._written = 0.0
        self._deaths: tuple[str, int] = ("", 0)  # of one job's processes, with no step between
        self._telling = threading.Lock()
        self._thread = threading.Thread(target=self._loop, name="jobs", daemon=True)

    def start(self) -> None:
        self.batcher.on_busy = self._tell
        self._thread.start()

    def stop(self) -> None:
        with self.changed:
            self.stopping.set()
            self.leave(at_once=False)
            self.changed.notify_all()
        if self._thread.ident:
            self._thread.join()

    def leave(self, at_once: bool) -> None:
        """End the process: when it has saved, or at once."""
        if self._runner and at_once:
            self._runner.kill()
        elif self._runner:
            self._runner.stop()

    def _tell(self, *_busy: bool) -> None:
        """The process whether somebody is being answered."""
        with self._telling:  # so that what is told last is what is true
            if runner := self._runner:
                runner.tell("busy" if self.batcher.busy else "free")

    @property
    def pid(self) -> int | None:
        runner = self._runner
        return runner.pid if runner else None

    def progress_of(self, id: str) -> dict[str, Any] | None:
        return dict(self._progress) if id == self.job else None

    def forget(self, id: str) -> None:
        """Remove the rows and the run of a job that has ended, and tell who wants to know. Of old jobs nothing is kept.
        """
        self.runs.discard(id)
        for call in self.on_done:
            try:
                call(self.table.get(id))
            except Exception:  # theirs; jobs must continue
                log.exception("after job %s", id)
        with suppress(EdgetuneError):  # the next job's end does it
            self.table.remove_old(self.job)

    # ---- the line -----------------------------------------------------------------------------------------------

    def _loop(self) -> None:
        while not self.stopping.is_set():
            try:
                self._attempt()
            except EdgetuneError as error:  # of the disk, or the database
                self._refused(error)
            finally:
                self.job = None

    def _attempt(self) -> None:
        """One job, as far as it gets."""
        if id := self._next():
            try:
                self._run(self.table.get(id))
            except (DiskError, TooMuchError):
                raise
            except Exception as error:
                log.exception("job %s", id)
                self._fail(id, type(error).__name__, str(error))
                self.forget(id)

    def _next(self) -> str | None:
        """The job to work on, when there is one; None: the service stops. Raises DiskError where there is no room."""
        with self.changed:
            while not self.stopping.is_set():
                if (wait := self._again_at - time.monotonic()) <= 0:
                    found = self.table.next()
                    if found or self.trouble:
                        disk.require_room(self.runs.folder, ROOM)
                        self.trouble = ""
                    if found:
                        self.job = found
                        self._progress = {}
                        self._pending = []
                        return found
                self.changed.wait(wait if wait > 0 else None)
        return None

    def _refused(self, error: EdgetuneError) -> None:
        """The job stays in line."""
        self.trouble = f"no training for now: {error.what}"
        self._again_at = time.monotonic() + RETRY_SECONDS
        log.warning("%s", self.trouble)

    # ---- one job ------------------------------------------------------------------------------------------------

    def _run(self, job: Job) -> None:
        made = self.adapters.of_job(job.id)
        with self.changed:
            status: str = self.table.get(job.id).status
            if made and status == "running":  # the daemon was killed before it could say so
                status = self._finish(job, made.verdict)
            elif status in ("queued", "running") and not self.stopping.is_set():
                task = self._task(job)
                self.table.set(job.id, "running", "resumed" if job.started_at else "begun",
                               started_at=job.started_at or now())
                self._runner = WorkerProcess(task)
        if self._runner:
            self._tell()
            against = task["serving"] and task["serving"]["id"]
            self._conclude(job, against, *self._listen(job.id, self._runner))
        elif status in ENDED:
            self.forget(job.id)

    def _listen(self, id: str, runner: WorkerProcess) -> tuple[dict[str, Any], int]:
        """The last thing that it says, and its exit code. Raises DiskError where that could not be kept."""
        last: dict[str, Any] = {}
        refused: DiskError | None = None
        try:
            for last in runner.events():
                try:
                    self._hear(id, last)
                except DiskError as error:
                    refused = error
                    runner.stop()
            self._write(id)
        except BaseException:
            runner.kill()
            raise
        finally:
            code = runner.wait()
            self._runner = None
        if refused:
            raise refused
        return last, code

    def _task(self, job: Job) -> dict[str, Any]:
        config = from_json(TrainConfig, job.config, f"the options of {job.id}")
        folder = self.runs.path(job.id)
        left = self.left_for_training()
        if not (folder / RUN).exists():
            left = int(left * SPARE)
        asked = config.memory_bytes(left) if config.memory else left
        serving = self.adapters.serving
        old = None
        if serving:
            old = {"id": serving, "path": str(self.adapters.path(serving)),
                   "scores": self.adapters.get(serving).verdict.get("scores", {})}
        return {"version": __version__, "model": str(self.model), "folder": str(folder), "method": job.method,
                "policy": asdict(self.policy), "canary": self.canary, "serving": old,
                "config": replace(config, memory=f"{max(min(asked, left) >> 20, 1)}M").to_json()}

    def _conclude(self, job: Job, against: str | None, last: dict[str, Any], code: int) -> None:
        """against: the adapter beside which it was judged. One that is gone may be why judging failed."""
        with self.changed:
            status: str = self.table.get(job.id).status
            if status == "running" and last.get("event") == "judged":
                status = self._finish(job, last["verdict"])
            elif status == "running" and last.get("event") == "failed" and last["disk"]:
                raise DiskError(last["what"], last["hint"])
            elif status == "running" and last.get("event") == "failed" and self._may_be_judged_again(job.id, against):
                self._judge_again(job.id, against)
            elif status == "running" and last.get("event") == "failed":
                status = self._fail(job.id, last["kind"], "; ".join(filter(None, (last["what"], last["hint"]))))
            elif status == "running" and code != STOPPED and not self.stopping.is_set():
                status = self._died(job.id, code)
        if status in ENDED:
            self.adapters.prune()
            self.forget(job.id)

    def _finish(self, job: Job, verdict: dict[str, Any]) -> str:
        """All of it may be done twice: a kill can come between any two of these."""
        made = self.adapters.of_job(job.id)
        against = verdict.get("against")
        if made is None and self.adapters.serving != against:
            return self._judge_again(job.id, against)
        run = self.runs.path(job.id) / RUN
        made = made or self.adapters.add(job.id, run, job.suffix, verdict)
        serves = made.state == "serving"
        if verdict["passed"] and made.state == "candidate":
            serves = self.adapters.admit(made.id, f"{job.id}: {verdict['reason']}", against)
        brief = {name: value for name, value in verdict.items() if name != "scores"}
        self.table.set(job.id, "succeeded", f"{'in service' if serves else 'a candidate'}: {verdict['reason']}",
                       data={"adapter": made.id, "verdict": verdict}, result=made.id, verdict=dump(brief),
                       trained_tokens=trained_tokens(run))
        return "succeeded"

    def _may_be_judged_again(self, id: str, against: str | None) -> bool:
        return self.adapters.serving != against and is_done(self.runs.path(id) / RUN)

    def _judge_again(self, id: str, against: str | None) -> str:
        self.table.set(id, "running", f"judged again: {self.adapters.serving or 'the base'} came into service while it "
                       f"was compared with {against or 'the base'}")
        return "running"

    def _fail(self, id: str, code: str, text: str) -> str:
        with self.changed:
            self.table.set(id, "failed", text, "error", error=dump({"code": code, "message": text, "param": None}))
        return "failed"

    def _died(self, id: str, code: int) -> str:
        """It did not say why: the kernel's choice where memory ran out, or a mistake of ours."""
        job, deaths = self._deaths
        self._deaths = (id, deaths + 1 if job == id else 1)
        how = f"the training process ended with {f'signal {-code}' if code < 0 else f'code {code}'}"
        if self._deaths[1] >= DEATHS:
            return self._fail(id, "died", f"{how}, {DEATHS} times without a step between; see the daemon's log")
        self.table.set(id, "running", f"{how}; it resumes from what was saved", "warn")
        return "running"

    # ---- what it says -------------------------------------------------------------------------------------------

    def _hear(self, id: str, event: dict[str, Any]) -> None:
        kind = event["event"]
        p = self._progress
        if kind == "start":
            event["plan"].pop("buffers")
            p.update(step=event["done"], steps=event["steps"], phase="training", tokens=0, seconds=0.0)
            self._note("metrics", f"training {event['rows']} rows in {event['steps']} steps", event)
        elif kind == "step":
            self._deaths = ("", 0)
            p["tokens"] += event["tokens"]
            p["seconds"] += event["seconds"]
            rate = p["tokens"] / max(p["seconds"], 1e-9)
            done = event["step"]
            p.update(step=done, loss=event["loss"], tokens_per_s=round(rate, 1),
                     eta_s=round((p["steps"] - done) * event["seconds"]))
            self._note("metrics", f"step {done}/{p['steps']}: loss {event['loss']:.4f}", event)
        elif kind == "eval":
            p["held_out_loss"] = event["loss"]
            self._note("metrics", f"after step {event['step']}: held-out loss {event['loss']:.4f}", event)
        elif kind == "resume":
            self._note("metrics", f"resumed after step {event['step']}", event)
        elif kind == "governor":
            self.decisions.appendleft({"at": now(), "action": event["action"], "cause": event["cause"]})
            self._note("metrics", f"{event['action']}: {event['cause']}", event)
        elif kind == "again":
            self._note("message", f"begins again, for {event['what']}", None, "warn")
        elif kind == "trained":
            p.update(phase="judging", trained_tokens=event["tokens"], eta_s=None)
            self._note("message", f"trained on {event['tokens']} tokens, now the gate asks held-out rows",
                       {"run": event["record"]})
        if kind != "step" or time.monotonic() - self._written >= TOGETHER_SECONDS:
            self._write(id)

    def _note(self, kind: str, text: str, data: Any, level: str = "info") -> None:
        self._pending.append((level, kind, text, data))

    def _write(self, id: str) -> None:
        """What was noted goes into the database in one transaction."""
        pending = self._pending
        self._pending = []
        self._written = time.monotonic()
        if not pending:
            return
        self.table.note(id, pending)


def read_canary(named: str) -> str:
    """The text whose perplexity must not rise; "": the one that is shipped. Raises UsageError."""
    try:
        return (Path(named).expanduser() if named else Path(__file__).with_name("canary.txt")).read_text("utf-8")
    except (OSError, ValueError) as error:
        raise UsageError(f"the canary {named} cannot be read: {error}", "name a file of plain text") from None
