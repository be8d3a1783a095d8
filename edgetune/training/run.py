"""A training run on disk: a folder with adapter.gguf, run.json and metrics.jsonl, and during training checkpoints.

Stopped at any moment, by a signal, an error or a power cut, it resumes from its last checkpoint, to the same bytes.
"""

from __future__ import annotations

import math
import time
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .. import disk
from ..adapters import store
from ..data import rows as supervised_rows
from ..data.dataset import Dataset
from ..errors import DiskError, DiskFullError, FormatError, Interrupted, NumericsError, UsageError, shell_word
from ..formats.bundle import Bundle
from ..machine import device
from ..objectives.base import Objective
from ..objectives.sft import Sft
from ..options import AUTO
from . import anchored, begin, checkpoint, length, metrics, reference, referred
from .begin import RunTask
from .callbacks import Event, RunCallbacks
from .config import TrainConfig
from .optim import is_state
from .origin import TOML, RunOrigin, write_toml
from .origin import read_origin as read_origin
from .plan import Plan
from .sizing import as_begun, sized_by
from .throttle import MemoryPressure, Throttle, be_nice
from .trainer import StepResult
from .verdict import Course, Verdict, diverged, judge

if TYPE_CHECKING:
    from .rewards import Rewards

MOST_EPOCHS = 1e6  # that may be added at once


def run(bundle: Bundle, data: Dataset, out: str | Path, config: TrainConfig, *, held_out: Dataset | None = None,
        start: str | Path | None = None, resume: bool = False, more: float = 0.0,
        allow_changed: Collection[str] = (), origin: RunOrigin | None = None,
        callbacks: RunCallbacks | None = None, objective: Objective | None = None,
        rewards: Rewards | None = None) -> dict[str, Any]:
    """Train, and write the adapter to the folder `out`. Returns run.json's content.

    held_out: rows on which the loss is measured, and by it the best adapter chosen.
    start: an adapter of the same base, rank and projections to begin from; None: one that changes nothing. A resumed
    run has its own, and refuses another.
    resume: continue the run in `out`; begin it if there is none, as after a disk that was full before the first
    checkpoint. allow_changed: names of facts that may have changed (see `resume`). more: epochs to add to a run that is
    finished, with a new schedule from its adapter on.
    origin: where the run comes from, for run.json.
    callbacks: functions by which the run asks and informs its caller.
    objective: the rule by which rows, read by its parser, are learned; None: imitation of their answers. rewards: the
    function that rewards answers, for an objective that learns from rewards.

    Raises UsageError where `out` exists and is not to be resumed, for options that do nothing without held_out, and for
    a finished run without `more`. Raises MismatchError for a resume with a difference that allow_changed does not name,
    and for a `start` of another base. Raises NumericsError when the loss is not finite: the best adapter that was
    measured is kept, else the last good one. Raises DiskError when the disk refuses: the last checkpoint is kept.
    """
    begins = not resume or not (more or Path(out).exists())
    if begins:
        config.check_held_out(held_out is not None)
    for name, value in (("allow-changed", allow_changed), ("more", more)):
        if value and not resume:
            raise UsageError(f"{name} is for a run that is resumed", "resume a run")
    if more and not 0 < more <= MOST_EPOCHS:
        raise UsageError(f"more is {more:g} epochs", f"give a number above 0, at most {MOST_EPOCHS:g}")
    config = sized_by(config if begins else as_begun(config, Path(out)), objective or Sft(), [data, held_out])
    calls = callbacks or RunCallbacks()
    if calls.governor:
        be_nice(calls.governor.policy.nice)
    task = RunTask(bundle, data, Path(out), config, held_out, Path(start) if start else None, more, origin,
                   allow_changed, objective, rewards, calls)
    if begins:
        prepared = _Run(task, begin.anew(task))
        _create(task.out, calls.resume_by)
        with _alone(task.out, calls.resume_by):
            return prepared.train()
    if not task.out.is_dir():
        raise FormatError(f"{task.out} is no folder of a run", "begin a run there")
    with _alone(task.out, calls.resume_by):
        return _Run(task, begin.resumed(task)).train()


def disk_writes(plan: Plan, config: TrainConfig, held_out: bool, folder: Path) -> dict[str, Any]:
    """The bytes that a run in this folder writes: those of a checkpoint and, at most, those of a day."""
    nbytes = sum(b.nbytes for b in plan.buffers if is_state(b) or (b.name == "best" and held_out))
    nbytes += 4096  # the first line and the checksum
    interval = config.checkpoint_seconds(folder)
    return {"checkpoint_every": f"{interval / 60:g}m" if config.checkpoint_every == AUTO else config.checkpoint_every,
            "checkpoint_seconds": interval if math.isfinite(interval) else None, "checkpoint_bytes": nbytes,
            "bytes_per_day": int(nbytes * 86400 / interval) + metrics.BYTES_PER_DAY}


@contextmanager
def _alone(out: Path, resume_by: str) -> Iterator[None]:
    """Locks the folder; if the disk refuses and a state is in it, the error says how to continue."""
    with disk.alone(out):
        try:
            yield
        except DiskError as error:
            if not checkpoint.found(out):
                raise
            way_out = "make room" if isinstance(error, DiskFullError) else "let it be written to"
            raise type(error)(error.what, f"{way_out}, then {resume_by}") from None


def _create(out: Path, resume_by: str) -> None:
    if out.exists():
        raise UsageError(f"the output folder {out} exists",
                         f"name another or remove it; where its run was stopped, {resume_by}")
    try:
        out.mkdir(parents=True)
        disk.sync(out.parent)
    except OSError as error:
        raise DiskError(f"the folder {out} cannot be made: {error.strerror}", "name another") from error


class _Run:
    def __init__(self, task: RunTask, begun: begin.Begun) -> None:
        self.task = task
        self.begun = begun
        self.out = task.out
        self.config = task.config
        self.held_out = task.held_out
        self.trainer = begun.trainer
        self.state = begun.state
        self.saved = begun.saved
        self.resumed_at = begun.trainer.steps_done  # steps that were done before this process
        self.metrics = metrics.MetricsFile(task.out)
        self.began = time.monotonic()
        self.saved_at = self.began
        calls = task.callbacks
        self.should_stop = calls.should_stop
        if calls.governor and calls.governor.policy.govern:
            self.should_stop = Throttle(calls.governor, self.trainer, calls.should_stop, self.save_state, self._write,
                                        busy=calls.busy)

    def train(self) -> dict[str, Any]:
        try:
            self._start()
            self._loop()
        except Interrupted as stop:
            self.save_state()
            self._save("paused")
            calls = self.task.callbacks
            what = f"{calls.name} was {stop.what}" if calls.name else stop.what
            raise Interrupted(what, f"the state is in {self.out}: {calls.resume_by}") from None
        except NumericsError:
            self._keep_last_good()
            raise
        except BaseException:
            self._remove_if_empty()
            raise
        record = self._save("done", judge(self._course()))
        checkpoint.remove_all(self.out)
        self.task.callbacks.on_event({"event": "done", **record})
        return record

    def _start(self) -> None:
        t = self.trainer
        self.metrics.rewind(self.begun.position)
        if self.begun.event:
            self._write(self.begun.event)
        largest = self._disk()["checkpoint_bytes"]
        copies = max(1, checkpoint.KEPT + 1 - len(checkpoint.found(self.out)))  # one more while it is written
        disk.require_room(self.out, copies * largest + t.arena.flat("lora").nbytes)
        data = self.task.data
        self.task.callbacks.on_event({
            "event": "start", "steps": t.total_steps, "done": t.steps_done, "rows": len(data.examples),
            "tokens": data.tokens, "computed": round(data.tokens * t.computed_share()), "supervised": data.supervised,
            "plan": t.plan.to_json(), "isa": t.ops.isa, "disk": self._disk()})
        if not self.begun.event and (expected := t.expect(self.should_stop)):
            self._write({"event": "expect", "step": t.steps_done, **asdict(expected)})
        if t.steps_done == t.begun_at and not self.state.from_seed:
            self.save_state()  # before run.json says so: the leg's first adapter may be overwritten or lost
        record = self._record("running")
        store.save_record(self.out, record)
        write_toml(self.out, record)
        if t.anchors and not (self.out / anchored.FILE).exists():
            anchored.save(self.out / anchored.FILE, t.anchors)
        referred.prepare(t, [data, self.held_out], self.out, self.state.start, self.should_stop)

    def _loop(self) -> None:
        t = self.trainer
        s = self.state
        interval = self.config.checkpoint_seconds(self.out)
        while True:
            with suppress(MemoryPressure):  # the loop repeats what was interrupted
                if self._measurement_due():
                    self._evaluate()
                if t.steps_done >= t.total_steps or length.is_enough(self.config, s.misses, s.overfitted):
                    break
                if self.should_stop():
                    raise Interrupted(f"stopped after step {t.steps_done} of {t.total_steps}")
                self._report(t.step(self.should_stop))
                if time.monotonic() - self.saved_at >= interval:
                    self.save_state()
        if s.best is not None:
            t.take_best()
        t.conclude(self.held_out.examples if self.held_out else [], self.task.callbacks.should_stop)

    # ---- measuring ----------------------------------------------------------------------------------------------

    def _measurement_due(self) -> bool:
        """Whether to measure: before the first step, every eval_every steps and after the last, each time once."""
        t = self.trainer
        if self.held_out is None or self.state.measured == t.steps_done:
            return False
        every = length.eval_every(self.config, t.steps_per_epoch, t.total_steps - t.begun_at,
                                  self.held_out.tokens / self.task.data.tokens)
        is_milestone = t.steps_done in t.source.milestones
        return is_milestone or (t.steps_done - t.begun_at) % every == 0 or t.steps_done >= t.total_steps

    def _evaluate(self) -> None:
        """Measures the held-out loss, and keeps the adapter if it is the best so far."""
        assert self.held_out is not None
        t = self.trainer
        s = self.state
        measured = t.measure(self.held_out.examples, self.should_stop)
        loss = measured.loss
        if s.measure(t.steps_done, loss, measured.rows):
            t.best_known = True
            t.keep_best()
        self._write({"event": "eval", "step": t.steps_done, "loss": loss, "tokens": measured.supervised, "best": s.best,
                     **_named(measured.metrics)})

    def _report(self, r: StepResult) -> None:
        if (progress := self.trainer.source.progress(r.loss, r.metrics)) is not None:
            self.state.learn(progress)
        self._write({"event": "step", "step": r.step, "loss": r.loss, "lr": r.lr, "grad_norm": r.grad_norm,
                     "tokens": r.tokens, "computed": r.computed, "supervised": r.supervised,
                     "tokens_per_s": r.tokens / r.seconds, "seconds": r.seconds,
                     "rss_mib": device.rss() / 2**20, **_named(r.metrics)})

    def _write(self, event: Event) -> None:
        self.metrics.write(event)
        self.task.callbacks.on_event(event)

    # ---- the state ----------------------------------------------------------------------------------------------

    def save_state(self) -> None:
        """Writes a checkpoint of the last whole step, unless the newest one already holds it."""
        t = self.trainer
        s = self.state
        if (t.steps_done, s.measured) != self.saved:
            s.seconds += time.monotonic() - self.began
            self.began = time.monotonic()
            meta = {"step": t.steps_done, "state": vars(s), "metrics": self.metrics.position(),
                    "identity": self.begun.identity, "plan": asdict(t.plan.tradeoffs),
                    "asked": begin.asked(self.config.to_json())}
            if of_source := t.source_state():
                meta["answers"] = of_source
            t.arena.release()  # writing a checkpoint needs memory that otherwise only a step uses
            s.written += checkpoint.save(self.out, t.steps_done, {n: t.arena.flat(n) for n in self._arrays()}, meta)
            self.saved = (t.steps_done, s.measured)
        self.saved_at = time.monotonic()

    def _arrays(self) -> list[str]:
        """The arrays that a checkpoint must hold now, because nothing else determines them."""
        t = self.trainer
        s = self.state
        names = t.state_arrays
        if t.steps_done == t.begun_at:  # the moments are 0
            names = [] if s.from_seed else [name for name in names if not name.startswith("adam_")]
        from_seed = s.from_seed and s.best_step == 0
        if s.best is not None and s.best_step != t.steps_done and not from_seed:
            names.append("best")
        return names

    def _disk(self) -> dict[str, Any]:
        return disk_writes(self.trainer.plan, self.config, self.held_out is not None, self.out)

    # ---- the folder ---------------------------------------------------------------------------------------------

    def _course(self) -> Course:
        t = self.trainer
        return Course(self.state.leg_history, t.begun_at, t.steps_done, t.total_steps, self.state.best_step,
                      t.peak_rate, f"edgetune resume {shell_word(self.out)} --epochs +4", self.state.learned,
                      t.source.is_rewarded, t.source.milestones)

    def _save(self, status: str, verdict: Verdict | None = None) -> dict[str, Any]:
        """Writes adapter.gguf and run.json, with the arena's adapter."""
        self.trainer.arena.release()
        record = self._record(status, verdict)
        of_answers = self.trainer.objective.rows is supervised_rows
        store.save_schema(self.out, self.task.data.schema if of_answers else None)
        if self.config.prompt:
            from ..serving.prompt_file import keep_prompt
            keep_prompt(self.out, self.config.prompt)
        store.save_beside(self.out, self.trainer.unexported)
        store.save_run(self.out, self.trainer.artifact(), self.task.bundle.gguf, record)
        return record

    def _record(self, status: str, verdict: Verdict | None = None) -> dict[str, Any]:
        """run.json's content."""
        s = self.state
        data = self.task.data
        return {
            "status": status, **self.trainer.record(), "origin": self.begun.origin,
            "system": data.system or self.trainer.config.system,
            "measure": "reward" if self.trainer.source.is_rewarded else "loss",
            "data": {"digest": data.digest, "rows": len(data.examples), "tokens": data.tokens,
                     "supervised": data.supervised, "truncated": data.truncated, "skipped": data.skipped},
            "held_out": None if self.held_out is None else {
                "digest": self.held_out.digest, "rows": len(self.held_out.examples), **s.measurements()},
            "verdict": asdict(verdict) if verdict else None,
            "start": s.start, "begun_at": s.begun_at, "more": s.more, "legs": s.legs, "identity": self.begun.identity,
            "seconds": s.seconds + time.monotonic() - self.began, "changed": s.changed,
            "disk": self._disk() | {"written_bytes": s.written + self.metrics.position()},
        }

    def _keep_last_good(self) -> None:
        """Saves the measured best, else the last adapter whose loss was finite; where neither is known, nothing."""
        t = self.trainer
        if t.best_known or t.steps_done > self.resumed_at:
            t.take_best()
            kept = self.state.best_step if t.best_known else max(t.steps_done - 1, 0)
            self._save("failed", diverged(self._course(), kept))
        else:
            self._remove_if_empty()

    def _remove_if_empty(self) -> None:
        """Removes the folder of a run that failed before anything was saved."""
        if not checkpoint.found(self.out) and not (self.out / store.FILE).exists():
            with suppress(OSError):
                self.metrics.path.unlink(missing_ok=True)
                (self.out / store.RUN).unlink(missing_ok=True)
                (self.out / reference.FILE).unlink(missing_ok=True)
                (self.out / anchored.FILE).unlink(missing_ok=True)
                (self.out / store.BESIDE).unlink(missing_ok=True)
                (self.out / TOML).unlink(missing_ok=True)
                self.out.rmdir()


def _named(metrics: Mapping[str, float]) -> dict[str, Any]:
    """An objective's metrics as a part of an event; empty for an objective without metrics."""
    return {"metrics": dict(metrics)} if metrics else {}
