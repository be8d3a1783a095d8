"""A training run on disk: a folder with adapter.gguf, run.json and metrics.jsonl, and while it lasts a checkpoint."""

from __future__ import annotations

import json
import math
import shutil
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from . import adapter, checkpoint, device
from .bundle import Bundle
from .config import TrainConfig
from .data import Dataset
from .errors import EdgetuneError, Interrupted, MismatchError, NumericsError, UsageError
from .governor import Governor
from .pace import Pace, be_nice
from .trainer import StepResult, Trainer

# Options that change speed, memory or when the run looks up, but not what is learned: free to change on --resume.
FREE_TO_CHANGE = ("micro_batch", "recompute", "threads", "checkpoint_every")

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


def run(bundle: Bundle, data: Dataset, out: str | Path, config: TrainConfig, *, held_out: Dataset | None = None,
        resume: bool = False, on_event: Callable[[Event], None] | None = None,
        should_stop: Callable[[], bool] | None = None, governor: Governor | None = None) -> dict[str, Any]:
    """Train, and leave the adapter in `out`; returns run.json's content.

    on_event gets {"event": "start" | "step" | "eval" | "done", ...}; steps and evals are metrics.jsonl's lines.
    should_stop is asked between micro-batches: Interrupted is raised after the state was saved, resume=True goes on.
    governor: what the run gives way to, a line each time in metrics.jsonl and an event.
    Raises UsageError where `out` exists, MismatchError for a resume on other data, base or options, NumericsError when
    the loss left the finite numbers (the last good adapter is kept).
    """
    if governor:
        be_nice(governor.policy.nice)
    return _Run(bundle, data, Path(out), config, held_out, on_event or (lambda _: None),
                should_stop or (lambda: False), governor).go(resume)


class _Run:
    def __init__(self, bundle: Bundle, data: Dataset, out: Path, config: TrainConfig, held_out: Dataset | None,
                 on_event: Callable[[Event], None], should_stop: Callable[[], bool], governor: Governor | None) -> None:
        self.out, self.data, self.held_out, self.bundle = out, data, held_out, bundle
        self.on_event, self.should_stop = on_event, should_stop
        rows = data.examples + (held_out.examples if held_out else [])
        self.trainer = Trainer(bundle, config, longest=max(e.tokens.size for e in rows))
        self.trainer.add_examples(data.examples)
        self.config, self.state = self.trainer.config, _State()
        self.began = time.monotonic()
        if governor and governor.policy.govern:
            self.should_stop = Pace(governor, self.trainer, should_stop, self._save_state, self._write)

    def go(self, resume: bool) -> dict[str, Any]:
        self._resume() if resume else self._create()
        self.on_event({"event": "start", "steps": self.trainer.total_steps, "done": self.trainer.steps_done,
                       "rows": len(self.data.examples), "tokens": self.data.tokens,
                       "supervised": self.data.supervised, "plan": self.trainer.plan.to_json(),
                       "isa": self.trainer.decoder.ctx.isa})
        try:
            self._loop()
        except Interrupted as stop:
            self._save_state()
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
        (self.out / checkpoint.NAME).unlink(missing_ok=True)
        self.on_event({"event": "done", **record})
        return record

    def _loop(self) -> None:
        t, s = self.trainer, self.state
        while True:
            if self._measurement_due():
                self._evaluate()
            if t.steps_done == t.total_steps or (self.config.patience and s.misses >= self.config.patience):
                break
            if self.should_stop():
                raise Interrupted(f"stopped after step {t.steps_done} of {t.total_steps}")
            self._report(t.step(self.should_stop))
            if self.config.checkpoint_every and t.steps_done % self.config.checkpoint_every == 0:
                self._save_state()
        if s.best_step:
            np.copyto(t.arena.flat("lora"), t.arena.flat("best"))

    # ---- measuring ----------------------------------------------------------------------------------------------

    def _measurement_due(self) -> bool:
        """Before the first step, every eval_every steps, after the last; once, also when the run was stopped there."""
        t, every = self.trainer, self.config.eval_every or self.trainer.steps_per_epoch
        due = t.steps_done % every == 0 or t.steps_done == t.total_steps
        return self.held_out is not None and due and self.state.measured != t.steps_done

    def _evaluate(self) -> None:
        """Held-out loss; remembers the best adapter so far."""
        assert self.held_out is not None
        t, s = self.trainer, self.state
        loss, tokens = t.loss(self.held_out.examples, self.should_stop)
        if t.steps_done == 0:
            s.eval_before = loss
        elif math.isfinite(loss) and (s.best is None or loss < s.best):
            s.best, s.best_step, s.misses, t.best_known = loss, t.steps_done, 0, True
            np.copyto(t.arena.flat("best"), t.arena.flat("lora"))
        else:
            s.misses += 1
        s.measured, s.eval_now = t.steps_done, loss
        self._write({"event": "eval", "step": t.steps_done, "loss": loss, "tokens": tokens, "best": s.best})

    def _report(self, r: StepResult) -> None:
        self._write({"event": "step", "step": r.step, "loss": r.loss, "lr": r.lr, "grad_norm": r.grad_norm,
                     "tokens": r.tokens, "supervised": r.supervised, "tokens_per_s": r.tokens / r.seconds,
                     "seconds": r.seconds, "rss_mib": device.rss() / 2**20})

    def _write(self, event: Event) -> None:
        try:
            with (self.out / "metrics.jsonl").open("a") as file:
                file.write(json.dumps(event) + "\n")
        except OSError as error:
            raise EdgetuneError(f"{self.out / 'metrics.jsonl'} cannot be written: {error.strerror}",
                                "free some space and go on with --resume, if a checkpoint is there") from error
        self.on_event(event)

    # ---- the folder ---------------------------------------------------------------------------------------------

    def _create(self) -> None:
        if self.out.exists():
            raise UsageError(f"the output folder {self.out} exists",
                             "name another with -o, remove it, or go on with --resume where a run was stopped")
        try:
            self.out.mkdir(parents=True)
        except OSError as error:
            raise EdgetuneError(f"the folder {self.out} cannot be made: {error.strerror}", "name another") from error

    def _identity(self) -> dict[str, Any]:
        """What must be the same when a run goes on."""
        options = {k: v for k, v in self.config.to_json().items() if k not in FREE_TO_CHANGE}
        return {"base": self.bundle.fingerprint, "data": self.data.digest,
                "held_out": self.held_out.digest if self.held_out else None, "options": options}

    def _save_state(self) -> None:
        t = self.trainer
        arrays = {name: t.arena.flat(name) for name in ("lora", "adam_m", "adam_v", "best")}
        self.state.seconds += time.monotonic() - self.began
        self.began = time.monotonic()
        checkpoint.save(self.out, arrays, {"step": t.steps_done, "state": vars(self.state), **self._identity()})

    def _resume(self) -> None:
        arrays, meta = checkpoint.load(self.out)
        for key, value in self._identity().items():
            if meta.get(key) != value:
                raise MismatchError(f"the run in {self.out} was started with {_difference(key, meta.get(key), value)}",
                                    "start a new run in another folder, or give the options it was started with")
        for name, array in arrays.items():
            np.copyto(self.trainer.arena.flat(name), array)
        self.trainer.steps_done = int(meta["step"])
        self.state = _State(**meta["state"])
        self.trainer.best_known = self.state.best_step > 0
        self._forget_metrics_after(int(meta["step"]))

    def _forget_metrics_after(self, step: int) -> None:
        """Steps that were done after the checkpoint will be done again; a power cut may have torn the last line."""
        metrics, kept = self.out / "metrics.jsonl", []
        for line in metrics.read_text().splitlines() if metrics.exists() else []:
            with suppress(ValueError, KeyError, TypeError):
                if json.loads(line)["step"] <= step:
                    kept.append(f"{line}\n")
        metrics.write_text("".join(kept))

    def _save(self, status: str) -> dict[str, Any]:
        """adapter.gguf and run.json from what the arena holds."""
        t, s = self.trainer, self.state
        record = {
            "status": status, **t.record(),
            "data": {"digest": self.data.digest, "rows": len(self.data.examples), "tokens": self.data.tokens,
                     "supervised": self.data.supervised, "truncated": self.data.truncated,
                     "skipped": self.data.skipped},
            "held_out": None if self.held_out is None else {
                "digest": self.held_out.digest, "rows": len(self.held_out.examples), "loss_before": s.eval_before,
                "loss_after": s.best if s.best_step else s.eval_now, "best_step": s.best_step},
            "seconds": s.seconds + time.monotonic() - self.began,
        }
        adapter.save_run(self.out, t.pairs, self.bundle.gguf, record)
        return record

    def _keep_last_good(self) -> None:
        """The measured best, else the last adapter whose loss was a number."""
        if self.trainer.steps_done:
            np.copyto(self.trainer.arena.flat("lora"), self.trainer.arena.flat("best"))
            self._save("failed")
        else:
            shutil.rmtree(self.out)

    def _remove_if_empty(self) -> None:
        """A run that failed before its first checkpoint leaves nothing behind."""
        if not (self.out / checkpoint.NAME).exists() and not (self.out / "adapter.gguf").exists():
            shutil.rmtree(self.out, ignore_errors=True)


def _difference(key: str, was: Any, now: Any) -> str:
    if key == "options" and isinstance(was, dict):
        for name, value in now.items():
            if was.get(name) != value:
                return f"--{name.replace('_', '-')} {was.get(name)}, not {value}"
    return f"another {key.replace('_', '-')}: {str(was)[:23]}, not {str(now)[:23]}"
