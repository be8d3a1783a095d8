"""The thread that takes jobs from the line, one at a time, listens to the process that trains, and concludes."""

from __future__ import annotations

import logging
import threading
import time
from collections import deque
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .. import disk
from ..config import TrainConfig
from ..errors import DiskError, EdgetuneError, UsageError
from .runner import Runner
from .store import add_event, dump, now
from .worker import RUN, STOPPED

if TYPE_CHECKING:
    from .jobs import Job, Jobs

log = logging.getLogger("edgetune.daemon")
ROOM = 64 * 2**20  # bytes that must be free before a job begins
RETRY_SECONDS = 60.0  # after the disk refused
TOGETHER_SECONDS = 2.0  # steps are written together: each commit is a sync of the disk
DEATHS = 3  # of the process, with no step between, and the job has failed
SPARE = 0.9  # of the memory that is left: so that the run can go on where the daemon is a little larger another time
KEPT = 20  # decisions of the governor

Event = tuple[str, str, str, Any]  # level, type, message, data


class Work:
    """See above; made by Jobs, whose `changed` guards what is here. trouble: why no job is begun for now, or ""."""

    def __init__(self, jobs: Jobs) -> None:
        self.jobs, self.service, self.changed = jobs, jobs.service, jobs.changed
        self.job: str | None = None  # the one that is at work
        self.trouble, self.decisions = "", deque[dict[str, Any]](maxlen=KEPT)
        self._again_at = 0.0
        self._runner: Runner | None = None
        self._progress: dict[str, Any] = {}
        self._pending: list[Event] = []
        self._written = 0.0
        self._deaths, self._telling = 0, threading.Lock()
        self._thread = threading.Thread(target=self._loop, name="jobs", daemon=True)

    def start(self) -> None:
        self.canary = read_canary(self.service.config.canary)
        self.service.batcher.on_busy = self._tell
        self._thread.start()

    def stop(self) -> None:
        with self.changed:
            self.service.stopping.set()
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
                runner.tell("busy" if self.service.batcher.busy else "free")

    @property
    def pid(self) -> int | None:
        runner = self._runner
        return runner.pid if runner else None

    def progress_of(self, id: str) -> dict[str, Any] | None:
        return dict(self._progress) if id == self.job else None

    # ---- the line -----------------------------------------------------------------------------------------------

    def _loop(self) -> None:
        while not self.service.stopping.is_set():
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
                self._run(self.jobs.get(id))
            except DiskError:
                raise
            except Exception as error:
                log.exception("job %s", id)
                self._fail(id, type(error).__name__, str(error))
                self.jobs.forget(id)

    def _next(self) -> str | None:
        """The job to work on, when there is one; None: the service stops. Raises DiskError where there is no room."""
        with self.changed:
            while not self.service.stopping.is_set():
                if (wait := self._again_at - time.monotonic()) <= 0:
                    found = self.jobs.store.read("SELECT id FROM jobs WHERE status IN ('running', 'queued') "
                                                 "ORDER BY status = 'queued', rowid LIMIT 1")
                    if found or self.trouble:
                        disk.require_room(self.jobs.folder, ROOM)
                        self.trouble = ""
                    if found:
                        self.job, self._progress, self._pending = found[0]["id"], {}, []
                        return self.job
                self.changed.wait(wait if wait > 0 else None)
        return None

    def _refused(self, error: EdgetuneError) -> None:
        """The job stays in line."""
        self.trouble, self._again_at = f"no training for now: {error.what}", time.monotonic() + RETRY_SECONDS
        log.warning("%s", self.trouble)

    # ---- one job ------------------------------------------------------------------------------------------------

    def _run(self, job: Job) -> None:
        with self.changed:
            status = self.jobs.get(job.id).status
            if status in ("queued", "running") and not self.service.stopping.is_set():
                task = self._task(job)
                self.jobs.set(job.id, "running", "goes on" if job.started_at else "begun",
                              started_at=job.started_at or now())
                self._runner = Runner(task)
        if self._runner:
            self._tell()
            self._conclude(job, *self._listen(job.id, self._runner))
        elif status == "cancelled":
            self.jobs.forget(job.id)

    def _listen(self, id: str, runner: Runner) -> tuple[dict[str, Any], int]:
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
        s, config = self.service, TrainConfig(**job.config)
        left = s.left_for_training()
        if not (self.jobs.folder / job.id / RUN).exists():
            left = int(left * SPARE)
        asked = config.memory_bytes(left) if config.memory else left
        serving = s.adapters.serving
        return {"model": str(s.path), "folder": str(self.jobs.folder / job.id), "policy": asdict(s.policy),
                "config": replace(config, memory=f"{max(min(asked, left) >> 20, 1)}M").to_json(), "canary": self.canary,
                "serving": serving and {"id": serving, "path": str(s.adapters.path(serving)),
                                        "scores": s.adapters.get(serving).verdict.get("scores", {})}}

    def _conclude(self, job: Job, last: dict[str, Any], code: int) -> None:
        with self.changed:
            status = self.jobs.get(job.id).status
            if status == "running" and last.get("event") == "judged":
                status = self._finish(job, last["verdict"])
            elif status == "running" and last.get("event") == "failed" and last["kind"] == "DiskError":
                raise DiskError(last["what"], last["hint"])
            elif status == "running" and last.get("event") == "failed":
                status = self._fail(job.id, last["kind"], "; ".join(filter(None, (last["what"], last["hint"]))))
            elif status == "running" and code != STOPPED and not self.service.stopping.is_set():
                status = self._died(job.id, code)
        if status in ("succeeded", "failed", "cancelled"):
            self.service.adapters.prune()
            self.jobs.forget(job.id)

    def _finish(self, job: Job, verdict: dict[str, Any]) -> str:
        """All of it may be done twice: a kill can come between any two of these."""
        adapters = self.service.adapters
        made = adapters.add(job.id, self.jobs.folder / job.id / RUN, job.suffix, verdict)
        if verdict["passed"] and made.state == "candidate":
            adapters.promote(made.id, f"{job.id}: {verdict['reason']}")
        text = f"{'in service' if verdict['passed'] else 'a candidate'}: {verdict['reason']}"
        self.jobs.set(job.id, "succeeded", text, data={"adapter": made.id, "verdict": verdict}, result=made.id,
                      trained_tokens=self._progress.get("trained_tokens"))
        return "succeeded"

    def _fail(self, id: str, code: str, text: str) -> str:
        with self.changed:
            self.jobs.set(id, "failed", text, "error", error=dump({"code": code, "message": text, "param": None}))
        return "failed"

    def _died(self, id: str, code: int) -> str:
        """It did not say why: the kernel's choice where memory ran out, or a mistake of ours."""
        self._deaths += 1
        how = f"the training process ended with {f'signal {-code}' if code < 0 else f'code {code}'}"
        if self._deaths >= DEATHS:
            self._deaths = 0
            return self._fail(id, "died", f"{how}, {DEATHS} times without a step between; see the daemon's log")
        self.jobs.set(id, "running", f"{how}; it goes on from what was saved", "warn")
        return "running"

    # ---- what it says -------------------------------------------------------------------------------------------

    def _hear(self, id: str, event: dict[str, Any]) -> None:
        kind, p = event["event"], self._progress
        if kind == "start":
            event["plan"].pop("buffers")
            p.update(step=event["done"], steps=event["steps"], phase="training", tokens=0, seconds=0.0)
            self._note("metrics", f"training {event['rows']} rows in {event['steps']} steps", event)
        elif kind == "step":
            self._deaths = 0
            p["tokens"], p["seconds"] = p["tokens"] + event["tokens"], p["seconds"] + event["seconds"]
            rate, done = p["tokens"] / max(p["seconds"], 1e-9), event["step"]
            p.update(step=done, loss=event["loss"], tokens_per_s=round(rate, 1),
                     eta_s=round((p["steps"] - done) * event["seconds"]))
            self._note("metrics", f"step {done}/{p['steps']}: loss {event['loss']:.4f}", event)
        elif kind == "eval":
            p["held_out_loss"] = event["loss"]
            self._note("metrics", f"after step {event['step']}: held-out loss {event['loss']:.4f}", event)
        elif kind == "resume":
            self._note("metrics", f"goes on after step {event['step']}", event)
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
        pending, self._pending = self._pending, []
        self._written = time.monotonic()
        if not pending:
            return
        with self.jobs.store.write() as db:
            for level, kind, text, data in pending:
                add_event(db, id, level, kind, text, data)
                if data and data.get("event") == "eval":
                    db.execute("INSERT INTO checkpoints (job, created_at, step, metrics) VALUES (?, ?, ?, ?)",
                               (id, now(), data["step"], dump({"valid_loss": data["loss"], "best": data["best"]})))


def read_canary(named: str) -> str:
    """The text whose perplexity must not rise; "": the one that is shipped. Raises UsageError."""
    try:
        return (Path(named).expanduser() if named else Path(__file__).with_name("canary.txt")).read_text("utf-8")
    except (OSError, ValueError) as error:
        raise UsageError(f"the canary {named} cannot be read: {error}", "name a file of plain text") from None
