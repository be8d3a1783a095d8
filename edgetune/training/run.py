"""A training run on disk: a folder with adapter.gguf, run.json and metrics.jsonl, and during training checkpoints.

Stopped at any moment, by a signal, an error or a power cut, it resumes from its last checkpoint, to the same bytes.
"""

from __future__ import annotations

import shlex
import time
from collections.abc import Callable, Collection, Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from .. import disk
from ..adapters import store
from ..adapters.base import Family
from ..adapters.low_rank import LoraFamily
from ..data.dataset import Dataset
from ..data.packing import lengths_of
from ..errors import DiskError, DiskFullError, FormatError, Interrupted, NumericsError, UsageError
from ..formats.bundle import Bundle
from ..machine import device
from ..machine.governor import Governor
from ..objectives.base import Objective
from ..objectives.sft import Sft
from ..persisted import from_json
from . import checkpoint, length, metrics
from .config import TrainConfig
from .plan import Plan, Tradeoffs
from .resume import differences, fingerprint_run
from .state import RunState
from .throttle import MemoryPressure, Throttle, be_nice
from .trainer import StepResult, Trainer
from .verdict import Course, Verdict, diverged, judge

Event = dict[str, Any]


@dataclass(frozen=True)
class _Task:
    """The arguments of `run`."""

    bundle: Bundle
    data: Dataset
    out: Path
    config: TrainConfig
    held_out: Dataset | None
    objective: Objective | None
    family: Family | None
    on_event: Callable[[Event], None]
    should_stop: Callable[[], bool]
    governor: Governor | None
    busy: Callable[[], bool]


def run(bundle: Bundle, data: Dataset, out: str | Path, config: TrainConfig, *, held_out: Dataset | None = None,
        resume: bool = False, allow_changed: Collection[str] = (), on_event: Callable[[Event], None] | None = None,
        should_stop: Callable[[], bool] | None = None, governor: Governor | None = None,
        busy: Callable[[], bool] = lambda: False, objective: Objective | None = None,
        family: Family | None = None) -> dict[str, Any]:
    """Train, and write the adapter to the folder `out`. Returns run.json's content.

    held_out: rows on which the loss is measured, and by it the best adapter chosen.
    resume: continue the run in `out`; allow_changed: names of what may differ from its start (see `resume`).
    on_event: called with {"event": "start" | "resume" | "step" | "eval" | "governor" | "done", ...}; all but start and
    done are lines of metrics.jsonl.
    should_stop: called before each block; where it returns True, the state is saved and Interrupted raised.
    governor: decides when the run slows down or pauses for others. busy: whether a request is being answered; the run
    then works a tenth of the time.
    objective: what is learned from the rows, which were read by its parser; None: to imitate their answers.
    family: what is trained; None: LoRA by the config.

    Raises UsageError where `out` exists, and for options that do nothing without held_out; MismatchError for a resume
    with a difference that allow_changed does not name; NumericsError when the loss is not finite (the last good adapter
    is kept); DiskError when the disk refuses (the last checkpoint is kept).
    """
    if not resume:
        config.check_held_out(held_out is not None)
    if allow_changed and not resume:
        raise UsageError("allow-changed is for a run that is resumed", "add --resume")
    if governor:
        be_nice(governor.policy.nice)
    task = _Task(bundle, data, Path(out), config, held_out, objective, family, on_event or (lambda _: None),
                 should_stop or (lambda: False), governor, busy)
    return _Run(task).go(resume, allow_changed)


def disk_writes(plan: Plan, config: TrainConfig, held_out: bool) -> dict[str, Any]:
    """What a run writes: the bytes of a checkpoint and, at most, those of a day."""
    nbytes = sum(b.nbytes for b in plan.buffers if _is_state(b.name) or (b.name == "best" and held_out))
    nbytes += 4096  # the first line and the checksum
    return {"checkpoint_every": config.checkpoint_every, "checkpoint_bytes": nbytes,
            "bytes_per_day": int(nbytes * 86400 / config.checkpoint_seconds()) + metrics.BYTES_PER_DAY}


class _Run:
    def __init__(self, task: _Task) -> None:
        self.task = task
        self.out = task.out
        self.config = task.config
        self.held_out = task.held_out
        self.should_stop = task.should_stop
        self.state = RunState()
        self.metrics = metrics.Metrics(task.out)
        self.saved: tuple[int, int] | None = None  # steps done and step measured, in the newest checkpoint
        self.resumed_at = 0  # steps that were done before this process

    def go(self, resume: bool, allow_changed: Collection[str]) -> dict[str, Any]:
        if not resume:
            self._build()
            self._create()
        elif not self.out.is_dir():
            raise FormatError(f"{self.out} is no folder of a run", "start the run without --resume")
        with disk.alone(self.out):
            try:
                if resume:
                    self._resume(allow_changed)
                return self._train()
            except DiskError as error:
                if not checkpoint.found(self.out):
                    raise
                way_out = "make room" if isinstance(error, DiskFullError) else "let it be written to"
                raise type(error)(error.what, f"{way_out}, then continue with --resume") from None

    def _build(self, previous: Tradeoffs | None = None) -> None:
        task = self.task
        lengths = lengths_of(task.data.examples)
        if self.held_out:
            lengths += lengths_of(self.held_out.examples)
        self.trainer = Trainer(task.bundle, self.config, lengths=lengths, previous=previous, objective=task.objective,
                               family=task.family)
        self.trainer.add_examples(task.data.examples)
        self.fingerprint = fingerprint_run(self.trainer, task.data, self.held_out)
        self.began = time.monotonic()
        self.saved_at = self.began
        if task.governor and task.governor.policy.govern:
            self.should_stop = Throttle(task.governor, self.trainer, task.should_stop, self.save_state, self._write,
                                        busy=task.busy)

    def _train(self) -> dict[str, Any]:
        try:
            self._start()
            self._loop()
        except Interrupted as stop:
            self.save_state()
            self._save("paused")
            hint = f"the state is in {self.out}: continue with the same command and --resume"
            raise Interrupted(stop.what, hint) from None
        except NumericsError:
            self._keep_last_good()
            raise
        except BaseException:
            self._remove_if_empty()
            raise
        record = self._save("done", judge(self._course()))
        checkpoint.remove_all(self.out)
        self.task.on_event({"event": "done", **record})
        return record

    def _start(self) -> None:
        t = self.trainer
        largest = self._disk()["checkpoint_bytes"]
        copies = max(1, checkpoint.KEPT + 1 - len(checkpoint.found(self.out)))  # one more while it is written
        disk.require_room(self.out, copies * largest + t.arena.flat("lora").nbytes)
        data = self.task.data
        self.task.on_event({"event": "start", "steps": t.total_steps, "done": t.steps_done, "rows": len(data.examples),
                            "tokens": data.tokens, "supervised": data.supervised, "plan": t.plan.to_json(),
                            "isa": t.ops.isa, "disk": self._disk()})

    def _loop(self) -> None:
        t = self.trainer
        s = self.state
        patience = length.patience(self.config)
        while True:
            with suppress(MemoryPressure):  # the loop repeats what was interrupted
                if self._measurement_due():
                    self._evaluate()
                if t.steps_done >= t.total_steps or (patience and s.misses >= patience):
                    break
                if self.should_stop():
                    raise Interrupted(f"stopped after step {t.steps_done} of {t.total_steps}")
                self._report(t.step(self.should_stop))
                if time.monotonic() - self.saved_at >= self.config.checkpoint_seconds():
                    self.save_state()
        if s.best is not None:
            np.copyto(t.arena.flat("lora"), t.arena.flat("best"))

    # ---- measuring ----------------------------------------------------------------------------------------------

    def _measurement_due(self) -> bool:
        """Before the first step, every eval_every steps and after the last; only once, also when a run was resumed."""
        t = self.trainer
        due = t.steps_done % t.eval_every == 0 or t.steps_done >= t.total_steps
        return self.held_out is not None and due and self.state.measured != t.steps_done

    def _evaluate(self) -> None:
        """Measures the held-out loss, and keeps the best adapter so far."""
        assert self.held_out is not None
        t = self.trainer
        s = self.state
        measured = t.measure(self.held_out.examples, self.should_stop)
        loss = measured.loss
        if s.measure(t.steps_done, loss):
            t.best_known = True
            np.copyto(t.arena.flat("best"), t.arena.flat("lora"))
        self._write({"event": "eval", "step": t.steps_done, "loss": loss, "tokens": measured.supervised, "best": s.best,
                     **_named(measured.metrics)})

    def _report(self, r: StepResult) -> None:
        self.state.learn(r.loss)
        self._write({"event": "step", "step": r.step, "loss": r.loss, "lr": r.lr, "grad_norm": r.grad_norm,
                     "tokens": r.tokens, "supervised": r.supervised, "tokens_per_s": r.tokens / r.seconds,
                     "seconds": r.seconds, "rss_mib": device.rss() / 2**20, **_named(r.metrics)})

    def _write(self, event: Event) -> None:
        self.metrics.write(event)
        self.task.on_event(event)

    # ---- the state ----------------------------------------------------------------------------------------------

    def save_state(self) -> None:
        """Writes a checkpoint of the last whole step, unless the newest one already holds it."""
        t = self.trainer
        s = self.state
        if (t.steps_done, s.measured) != self.saved:
            s.seconds += time.monotonic() - self.began
            self.began = time.monotonic()
            meta = {"step": t.steps_done, "state": vars(s), "metrics": self.metrics.position(),
                    "identity": self.fingerprint, "plan": asdict(t.plan.tradeoffs), "asked": self._asked()}
            t.arena.release()  # writing a checkpoint needs memory that otherwise only a step uses
            s.written += checkpoint.save(self.out, t.steps_done, {n: t.arena.flat(n) for n in self._arrays()}, meta)
            self.saved = (t.steps_done, s.measured)
        self.saved_at = time.monotonic()

    def _arrays(self) -> list[str]:
        """The arrays that a checkpoint must hold now, because nothing else determines them."""
        if not self.trainer.steps_done:
            return []  # the seed determines them
        best = self.state.best is not None and self.state.best_step not in (0, self.trainer.steps_done)
        return [name for name in self.trainer.arena.buffers if _is_state(name) or (best and name == "best")]

    def _disk(self) -> dict[str, Any]:
        return disk_writes(self.trainer.plan, self.config, self.held_out is not None)

    def _resume(self, allow_changed: Collection[str]) -> None:
        """Continues from the newest undamaged checkpoint; a run that was killed before its first one starts again."""
        for stale in (*self.out.glob(f"{checkpoint.PREFIX}*.tmp"), *self.out.glob(f"{store.FILE}.tmp"),
                      *self.out.glob(f"{store.RUN}.tmp")):
            with suppress(OSError):
                stale.unlink()
        if not checkpoint.found(self.out):
            self._restart()
            return
        found, damaged = checkpoint.newest(self.out)
        previous = None
        if found.meta["asked"] == self._asked():  # then the plan is kept, too, whatever memory is available now
            previous = from_json(Tradeoffs, found.meta["plan"], f"the plan in {found.path}")
        self._build(previous)
        defaults = {"objective": Sft.name, "family": LoraFamily.name}  # of runs older than these two
        was = {**defaults, **found.meta["identity"]}
        changed = differences(self.out, was, self.fingerprint, allow_changed)
        self._restore(found, changed)
        self.metrics.rewind(int(found.meta["metrics"]))
        self._write({"event": "resume", "step": self.trainer.steps_done, "damaged": damaged, "changed": changed})

    def _asked(self) -> list[Any]:
        """The options that decide the plan, beside memory."""
        return [self.config.micro_batch, self.config.recompute, self.config.optimizer_state]

    def _restart(self) -> None:
        """After a kill before the first checkpoint, which leaves metrics, and maybe an adapter without run.json.
        A report may have been asked for since.
        """
        if not {path.name for path in self.out.iterdir()} <= {metrics.NAME, store.FILE, metrics.CSV, metrics.REPORT}:
            raise FormatError(f"{self.out} holds no checkpoint: it is finished, or no run", "start in another folder")
        self._build()
        self.metrics.rewind(0)
        self._write({"event": "resume", "step": 0, "damaged": [], "changed": []})

    def _restore(self, found: checkpoint.Checkpoint, changed: list[dict[str, Any]]) -> None:
        t = self.trainer
        np.copyto(t.arena.flat("best"), t.arena.flat("lora"))  # of step 0, which the seed determines
        found.read(t.arena.flat)
        t.steps_done = int(found.meta["step"])
        self.resumed_at = t.steps_done
        s = from_json(RunState, found.meta["state"], f"the state in {found.path}")
        if any(change["name"] == "held-out" for change in changed):
            s = s.forget_measurements()
        self.state = s
        if s.best_step == t.steps_done:
            np.copyto(t.arena.flat("best"), t.arena.flat("lora"))
        t.best_known = s.best is not None
        s.changed += [{**change, "after_step": t.steps_done} for change in changed]
        self.saved = None if changed else (t.steps_done, s.measured)

    # ---- the folder ---------------------------------------------------------------------------------------------

    def _create(self) -> None:
        if self.out.exists():
            raise UsageError(f"the output folder {self.out} exists",
                             "name another with -o, remove it, or add --resume to continue a run that was stopped")
        try:
            self.out.mkdir(parents=True)
            disk.sync(self.out.parent)
        except OSError as error:
            raise DiskError(f"the folder {self.out} cannot be made: {error.strerror}", "name another") from error

    def _course(self) -> Course:
        t = self.trainer
        history = [(int(step), loss) for step, loss in self.state.history]
        return Course(history, 0, t.steps_done, t.total_steps, self.config.lr,
                      f"edgetune resume {shlex.quote(str(self.out))} --epochs +4", self.state.learned)

    def _save(self, status: str, verdict: Verdict | None = None) -> dict[str, Any]:
        """Writes adapter.gguf and run.json, with the arena's adapter."""
        t = self.trainer
        s = self.state
        t.arena.release()
        data = self.task.data
        record = {
            "status": status, **t.record(),
            "data": {"digest": data.digest, "rows": len(data.examples), "tokens": data.tokens,
                     "supervised": data.supervised, "truncated": data.truncated, "skipped": data.skipped},
            "held_out": None if self.held_out is None else {
                "digest": self.held_out.digest, "rows": len(self.held_out.examples), **s.measurements()},
            "verdict": asdict(verdict) if verdict else None,
            "seconds": s.seconds + time.monotonic() - self.began, "changed": s.changed,
            "disk": self._disk() | {"written_bytes": s.written + self.metrics.position()},
        }
        store.save_run(self.out, t.decoder.adapter.export(), self.task.bundle.gguf, record)
        return record

    def _keep_last_good(self) -> None:
        """Saves the measured best, else the last adapter whose loss was finite; where neither is known, nothing."""
        t = self.trainer
        if t.best_known or t.steps_done > self.resumed_at:
            np.copyto(t.arena.flat("lora"), t.arena.flat("best"))
            kept = self.state.best_step if t.best_known else max(t.steps_done - 1, 0)
            self._save("failed", diverged(self._course(), kept))
        else:
            self._remove_if_empty()

    def _remove_if_empty(self) -> None:
        """Removes the folder of a run that failed before anything was saved."""
        if not checkpoint.found(self.out) and not (self.out / store.FILE).exists():
            with suppress(OSError):
                self.metrics.path.unlink(missing_ok=True)
                self.out.rmdir()


def _named(metrics: Mapping[str, float]) -> dict[str, Any]:
    """An objective's metrics as a part of an event; empty for an objective without metrics."""
    return {"metrics": dict(metrics)} if metrics else {}


def _is_state(buffer: str) -> bool:
    """Whether the next step depends on what a buffer holds."""
    return buffer == "lora" or buffer.startswith("adam_")
