"""A training run on disk: a folder with adapter.gguf, run.json and metrics.jsonl, and while it lasts checkpoints.

Stopped at any moment, by a signal, an error or a power cut, it goes on from its last checkpoint to the same bytes.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Collection, Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from .. import disk
from ..adapters import store as adapter
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
from . import checkpoint, metrics
from .config import TrainConfig
from .plan import Plan, Tradeoffs
from .resume import differences, fingerprint_run
from .throttle import MemoryPressure, Throttle, be_nice
from .trainer import StepResult, Trainer

Event = dict[str, Any]


@dataclass
class _State:
    """What a run knows beside the trainer's arrays."""

    eval_before: float | None = None
    eval_now: float | None = None
    best: float | None = None
    best_step: int = 0
    misses: int = 0  # measurements since the best
    measured: int = -1  # the last step after which the held-out loss was measured
    seconds: float = 0.0
    written: int = 0  # bytes of checkpoints
    changed: list[dict[str, Any]] = field(default_factory=list)  # what resumes were allowed to change: name, was, now


def run(bundle: Bundle, data: Dataset, out: str | Path, config: TrainConfig, *, held_out: Dataset | None = None,
        resume: bool = False, allow_changed: Collection[str] = (), on_event: Callable[[Event], None] | None = None,
        should_stop: Callable[[], bool] | None = None, governor: Governor | None = None,
        busy: Callable[[], bool] = lambda: False, objective: Objective | None = None,
        family: Family | None = None) -> dict[str, Any]:
    """Train, and leave the adapter in `out`; returns run.json's content.

    on_event gets {"event": "start" | "resume" | "step" | "eval" | "governor" | "done", ...}; all but start and done are
    lines of metrics.jsonl. should_stop is asked before each block of the model: Interrupted is raised after the state
    was saved, resume=True goes on. governor: what the run gives way to, and while `busy` it takes a tenth of the time.
    objective: what is learned from the rows, which were read by its parser; None: to imitate their answers.
    family: what is trained; None: LoRA by the config.
    Raises UsageError where `out` exists, and for options that do nothing without held_out; MismatchError for a resume
    on what is not the same (see identity.identity) and not named in allow_changed; NumericsError when the loss left the
    finite numbers (the last good adapter is kept); DiskError when the disk refuses (the last checkpoint is kept).
    """
    if not resume:
        config.check_held_out(held_out is not None)
    if allow_changed and not resume:
        raise UsageError("allow-changed is for a run that goes on", "add --resume")
    if governor:
        be_nice(governor.policy.nice)
    return _Run(bundle, data, Path(out), config, held_out, on_event or (lambda _: None),
                should_stop or (lambda: False), governor, busy, objective, family).go(resume, allow_changed)


def disk_writes(plan: Plan, config: TrainConfig, held_out: bool) -> dict[str, Any]:
    """What a run writes: bytes of a checkpoint and, at most, of a day."""
    nbytes = sum(b.nbytes for b in plan.buffers if _is_state(b.name) or (b.name == "best" and held_out))
    nbytes += 4096  # and a head
    return {"checkpoint_every": config.checkpoint_every, "checkpoint_bytes": nbytes,
            "bytes_per_day": int(nbytes * 86400 / config.checkpoint_seconds()) + metrics.BYTES_PER_DAY}


class _Run:
    def __init__(self, bundle: Bundle, data: Dataset, out: Path, config: TrainConfig, held_out: Dataset | None,
                 on_event: Callable[[Event], None], should_stop: Callable[[], bool], governor: Governor | None,
                 busy: Callable[[], bool], objective: Objective | None,
                 family: Family | None) -> None:
        self.objective = objective
        self.family = family
        self.out = out
        self.data = data
        self.held_out = held_out
        self.bundle = bundle
        self.config = config
        self.on_event = on_event
        self.should_stop = should_stop
        self.governor = governor
        self.busy = busy
        self.state = _State()
        self.metrics = metrics.Metrics(out)
        self.saved: tuple[int, int] | None = None  # steps done and measured, as the newest checkpoint says
        self.first_step = 0  # of this process, less one

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
                raise type(error)(error.what, f"{way_out}, then go on with --resume") from None

    def _build(self, like: Tradeoffs | None = None) -> None:
        lengths = lengths_of(self.data.examples) + (lengths_of(self.held_out.examples) if self.held_out else [])
        self.trainer = Trainer(self.bundle, self.config, lengths=lengths, like=like, objective=self.objective,
                               family=self.family)
        self.trainer.add_examples(self.data.examples)
        self.identity = fingerprint_run(self.trainer, self.data, self.held_out)
        self.began = self.saved_at = time.monotonic()
        if self.governor and self.governor.policy.govern:
            self.should_stop = Throttle(self.governor, self.trainer, self.should_stop, self.save_state, self._write,
                                    busy=self.busy)

    def _train(self) -> dict[str, Any]:
        try:
            self._start()
            self._loop()
        except Interrupted as stop:
            self.save_state()
            self._save("paused")
            hint = f"the state is in {self.out}: go on with the same command and --resume"
            raise Interrupted(stop.what, hint) from None
        except NumericsError:
            self._keep_last_good()
            raise
        except BaseException:
            self._remove_if_empty()
            raise
        record = self._save("done")
        checkpoint.remove_all(self.out)
        self.on_event({"event": "done", **record})
        return record

    def _start(self) -> None:
        t = self.trainer
        largest = self._disk()["checkpoint_bytes"]
        copies = max(1, checkpoint.KEPT + 1 - len(checkpoint.found(self.out)))  # one more while it is written
        disk.require_room(self.out, copies * largest + t.arena.flat("lora").nbytes)
        self.on_event({"event": "start", "steps": t.total_steps, "done": t.steps_done, "rows": len(self.data.examples),
                       "tokens": self.data.tokens, "supervised": self.data.supervised, "plan": t.plan.to_json(),
                       "isa": t.ops.isa, "disk": self._disk()})

    def _loop(self) -> None:
        t = self.trainer
        s = self.state
        while True:
            with suppress(MemoryPressure):  # what was begun is done again
                if self._measurement_due():
                    self._evaluate()
                if t.steps_done >= t.total_steps or (self.config.patience and s.misses >= self.config.patience):
                    break
                if self.should_stop():
                    raise Interrupted(f"stopped after step {t.steps_done} of {t.total_steps}")
                self._report(t.step(self.should_stop))
                if time.monotonic() - self.saved_at >= self.config.checkpoint_seconds():
                    self.save_state()
        if s.best_step:
            np.copyto(t.arena.flat("lora"), t.arena.flat("best"))

    # ---- measuring ----------------------------------------------------------------------------------------------

    def _measurement_due(self) -> bool:
        """Before the first step, every eval_every steps, after the last; once, also when the run was stopped there."""
        t = self.trainer
        every = self.config.eval_every or self.trainer.steps_per_epoch
        due = t.steps_done % every == 0 or t.steps_done >= t.total_steps
        return self.held_out is not None and due and self.state.measured != t.steps_done

    def _evaluate(self) -> None:
        """Held-out loss; remembers the best adapter so far."""
        assert self.held_out is not None
        t = self.trainer
        s = self.state
        measured = t.measure(self.held_out.examples, self.should_stop)
        loss = measured.loss
        if t.steps_done == 0:
            s.eval_before = loss
        elif math.isfinite(loss) and (s.best is None or loss < s.best):
            s.best = loss
            s.best_step = t.steps_done
            s.misses = 0
            t.best_known = True
            np.copyto(t.arena.flat("best"), t.arena.flat("lora"))
        else:
            s.misses += 1
        s.measured = t.steps_done
        s.eval_now = loss
        self._write({"event": "eval", "step": t.steps_done, "loss": loss, "tokens": measured.supervised, "best": s.best,
                     **_named(measured.metrics)})

    def _report(self, r: StepResult) -> None:
        self._write({"event": "step", "step": r.step, "loss": r.loss, "lr": r.lr, "grad_norm": r.grad_norm,
                     "tokens": r.tokens, "supervised": r.supervised, "tokens_per_s": r.tokens / r.seconds,
                     "seconds": r.seconds, "rss_mib": device.rss() / 2**20, **_named(r.metrics)})

    def _write(self, event: Event) -> None:
        self.metrics.write(event)
        self.on_event(event)

    # ---- the state ----------------------------------------------------------------------------------------------

    def save_state(self) -> None:
        """A checkpoint of the last whole step, unless the newest one holds it already."""
        t = self.trainer
        s = self.state
        if (t.steps_done, s.measured) != self.saved:
            s.seconds += time.monotonic() - self.began
            self.began = time.monotonic()
            meta = {"step": t.steps_done, "state": vars(s), "metrics": self.metrics.position(),
                    "identity": self.identity, "plan": asdict(t.plan.choice), "asked": self._asked()}
            t.arena.release()  # what a checkpoint takes is taken from what only a step needs
            s.written += checkpoint.save(self.out, t.steps_done, {n: t.arena.flat(n) for n in self._arrays()}, meta)
            self.saved = t.steps_done, s.measured
        self.saved_at = time.monotonic()

    def _arrays(self) -> list[str]:
        """The arrays that a checkpoint must hold now: those that nothing else tells."""
        if not self.trainer.steps_done:
            return []  # the seed tells
        best = self.state.best_step not in (0, self.trainer.steps_done)
        return [name for name in self.trainer.arena.buffers if _is_state(name) or (best and name == "best")]

    def _disk(self) -> dict[str, Any]:
        return disk_writes(self.trainer.plan, self.config, self.held_out is not None)

    def _resume(self, allow_changed: Collection[str]) -> None:
        """Takes up the newest checkpoint that is whole; a run that was killed before its first one begins again."""
        for stale in (*self.out.glob(f"{checkpoint.PREFIX}*.tmp"), *self.out.glob(f"{adapter.FILE}.tmp"),
                      *self.out.glob(f"{adapter.RUN}.tmp")):
            with suppress(OSError):
                stale.unlink()
        if not checkpoint.found(self.out):
            self._begin_again()
            return
        found, damaged = checkpoint.newest(self.out)
        same = found.meta["asked"] == self._asked()  # then also what was planned, whatever memory there is now
        self._build(from_json(Tradeoffs, found.meta["plan"], f"the plan in {found.path}") if same else None)
        was = {"objective": Sft.name, "family": LoraFamily.name, **found.meta["identity"]}  # older runs had no other
        changed = differences(self.out, was, self.identity, allow_changed)
        self._take_up(found, changed)
        self.metrics.rewind(int(found.meta["metrics"]))
        self._write({"event": "resume", "step": self.trainer.steps_done, "damaged": damaged, "changed": changed})

    def _asked(self) -> list[Any]:
        """Options that the plan may have to obey, beside memory."""
        return [self.config.micro_batch, self.config.recompute, self.config.optimizer_state]

    def _begin_again(self) -> None:
        """A run that was killed before its first checkpoint has left metrics, and may be a first half of its result."""
        if not {path.name for path in self.out.iterdir()} <= {metrics.NAME, adapter.FILE}:
            raise FormatError(f"{self.out} holds no checkpoint: it is finished, or no run", "start in another folder")
        self._build()
        self.metrics.rewind(0)
        self._write({"event": "resume", "step": 0, "damaged": [], "changed": []})

    def _take_up(self, found: checkpoint.Checkpoint, changed: list[dict[str, Any]]) -> None:
        t = self.trainer
        found.read(t.arena.flat)
        t.steps_done = self.first_step = int(found.meta["step"])
        self.state = s = from_json(_State, found.meta["state"], f"the state in {found.path}")
        if any(change["name"] == "held-out" for change in changed):  # the best was measured on other rows
            self.state = s = _State(seconds=s.seconds, written=s.written, changed=s.changed)
        if s.best_step and "best" not in dict(found.arrays):
            np.copyto(t.arena.flat("best"), t.arena.flat("lora"))
        t.best_known = s.best_step > 0
        s.changed += [{**change, "after_step": t.steps_done} for change in changed]
        self.saved = None if changed else (t.steps_done, s.measured)

    # ---- the folder ---------------------------------------------------------------------------------------------

    def _create(self) -> None:
        if self.out.exists():
            raise UsageError(f"the output folder {self.out} exists",
                             "name another with -o, remove it, or go on with --resume where a run was stopped")
        try:
            self.out.mkdir(parents=True)
            disk.sync(self.out.parent)
        except OSError as error:
            raise DiskError(f"the folder {self.out} cannot be made: {error.strerror}", "name another") from error

    def _save(self, status: str) -> dict[str, Any]:
        """adapter.gguf and run.json from what the arena holds."""
        t = self.trainer
        s = self.state
        t.arena.release()
        record = {
            "status": status, **t.record(),
            "data": {"digest": self.data.digest, "rows": len(self.data.examples), "tokens": self.data.tokens,
                     "supervised": self.data.supervised, "truncated": self.data.truncated,
                     "skipped": self.data.skipped},
            "held_out": None if self.held_out is None else {
                "digest": self.held_out.digest, "rows": len(self.held_out.examples), "loss_before": s.eval_before,
                "loss_after": s.best if s.best_step else s.eval_now, "best_step": s.best_step},
            "seconds": s.seconds + time.monotonic() - self.began, "changed": s.changed,
            "disk": self._disk() | {"written_bytes": s.written + self.metrics.position()},
        }
        adapter.save_run(self.out, t.decoder.adapter.export(), self.bundle.gguf, record)
        return record

    def _keep_last_good(self) -> None:
        """The measured best, else the last adapter whose loss was a number; where neither is known, nothing."""
        t = self.trainer
        if t.best_known or t.steps_done > self.first_step:
            np.copyto(t.arena.flat("lora"), t.arena.flat("best"))
            self._save("failed")
        else:
            self._remove_if_empty()

    def _remove_if_empty(self) -> None:
        """A run that failed before anything of it was saved leaves nothing behind."""
        if not checkpoint.found(self.out) and not (self.out / adapter.FILE).exists():
            with suppress(OSError):
                self.metrics.path.unlink(missing_ok=True)
                self.out.rmdir()


def _named(metrics: Mapping[str, float]) -> dict[str, Any]:
    """An objective's metrics as a part of an event; an objective without has none."""
    return {"metrics": dict(metrics)} if metrics else {}


def _is_state(buffer: str) -> bool:
    """Whether the next step depends on what a buffer holds."""
    return buffer == "lora" or buffer.startswith("adam_")
