"""The beginning of a run: new, again after an early kill, from its newest checkpoint, or more epochs after its end."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from contextlib import suppress
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any

import numpy as np

from ..adapters import store
from ..data.dataset import Dataset
from ..data.packing import Example
from ..errors import FormatError, MismatchError, UsageError
from ..formats.bundle import Bundle
from ..models.networks import open_network
from ..objectives.base import Objective
from ..objectives.sft import Sft
from ..options import AUTO
from ..persisted import from_json
from . import anchored, checkpoint, metrics, reference
from .callbacks import Event, RunCallbacks
from .checkpoint import RunState, next_leg
from .config import LORA, TrainConfig
from .length import anchors_learned, units_of
from .origin import TOML, RunOrigin
from .resume import Identity, differences, fingerprint_run
from .rewards import Rewards, needs_judge, reserved
from .sizing import make_plan
from .throttle import Courtesy
from .tradeoffs import Tradeoffs
from .trainer import Trainer

OLDER = {"method": Sft.name, "family": LORA, "start": None, "anchors": 0}  # of runs that precede these names

VALUED = "lora with a value"  # an earlier name of LoRA with a value head


@dataclass(frozen=True)
class RunTask:
    """The arguments of `run`."""

    bundle: Bundle
    data: Dataset
    out: Path
    config: TrainConfig
    held_out: Dataset | None
    start: Path | None
    more: float
    origin: RunOrigin | None
    allow_changed: Collection[str]
    objective: Objective | None
    rewards: Rewards | None
    callbacks: RunCallbacks


@dataclass
class Begun:
    """A run in memory before its next step. saved: (steps done, step measured) of the newest checkpoint; None if no
    checkpoint holds this state. position: where metrics.jsonl continues. event: its first line.
    """

    trainer: Trainer
    identity: Identity
    state: RunState
    origin: dict[str, Any] | None
    saved: tuple[int, int] | None = None
    position: int = 0
    event: Event = field(default_factory=dict)


def anew(task: RunTask) -> Begun:
    begun = _open(task, None, {}, {})
    if task.start:
        begun.state.start = {"path": str(task.start.resolve()), "fingerprint": begun.identity["start"]}
        begun.trainer.load(task.start)
        begun.trainer.keep_start()
    return begun


def resumed(task: RunTask) -> Begun:
    """Continues from the folder: from the newest undamaged checkpoint; from the start, after a kill before the first
    one; or from the finished adapter, if epochs are added.
    """
    whole = (f"{checkpoint.PREFIX}*", store.FILE, store.BESIDE, store.RUN, TOML, metrics.CSV, metrics.REPORT,
             reference.FILE, anchored.FILE, *store.PROMPT)
    for stale in (path for name in whole for path in task.out.glob(f"{name}.tmp")):
        with suppress(OSError):
            stale.unlink()
    record = store.read_run(task.out)
    saved = checkpoint.found(task.out)
    if record.get("status") == "done" and (task.more or not saved):
        return _next_leg(task, record)
    return _from_checkpoint(task, record) if saved else _again(task, record)


def _open(task: RunTask, previous: Tradeoffs | None, was: Identity, record: Mapping[str, Any]) -> Begun:
    """Builds the trainer. was, record: identity and run.json of a resumed run."""
    parts = [part.examples for part in (task.data, task.held_out) if part]
    objective = task.objective or Sft()
    config = task.config
    lengths = anchored.lengths_with_anchors(objective, config, *parts).with_known(reserved(task.rewards))
    if needs_judge(task.rewards):
        lengths = replace(lengths, aside=config.row_limit)

    def fits() -> object:
        return make_plan(open_network(task.bundle.gguf), config, lengths=lengths, previous=previous,
                         objective=objective)

    anchors, batches = _anchors(task, objective, was, record, fits)
    trainer = Trainer(task.bundle, config, lengths=lengths, previous=previous, objective=objective,
                      rewards=task.rewards)
    trainer.add_examples(task.data.examples)
    trainer.add_anchors(anchors, anchored.rows_per_anchor(config, objective), batches)
    identity = fingerprint_run(trainer, task.data, task.held_out)
    if task.start:
        identity["start"] = store.fingerprint_of(task.start)
    return Begun(trainer, identity, RunState(), _origin(task, trainer, None))


def _anchors(task: RunTask, objective: Objective, was: Identity, record: Mapping[str, Any],
             fits: Callable[[], object]) -> tuple[list[Example], range]:
    """Returns the anchors and their batches. A resumed run has those that it began with; one without any gets none,
    unless the options name a number. fits: raises before any is drawn, if training does not fit.
    """
    every = anchored.rows_per_anchor(task.config, objective)
    if not every or (task.config.anchors == AUTO and not was.get("anchors", every)):
        return [], range(0)
    number = anchors_learned(task.config, len(units_of(task.data.examples, task.config)), every)
    batches = anchored.batches_of(number, record, store.read_run(task.start) if task.start else {})
    if kept := anchored.read(task.out / anchored.FILE):
        return kept, batches
    calls = task.callbacks
    should_stop = Courtesy(calls.should_stop, calls.busy, calls.governor)
    return anchored.prepare(task.bundle, task.config, batches, should_stop, calls.on_event, fits), batches


def _origin(task: RunTask, trainer: Trainer, before: Mapping[str, Any] | None) -> dict[str, Any] | None:
    """The origin to write to run.json. An origin that it holds already keeps its `started`."""
    if task.origin is None:
        return dict(before) if before else None
    governor = task.callbacks.governor
    policy = governor.policy.to_json() if governor else {}
    started = before["started"] if before else task.origin.started
    return vars(replace(task.origin, objective=trainer.objective.to_json(), policy=policy, started=started))


def asked(options: Mapping[str, Any]) -> list[Any]:
    """The options that decide the plan, except memory."""
    return [options["micro_batch"], options["recompute"], options["optimizer_state"]]


def _reopened(task: RunTask, record: Mapping[str, Any], was_asked: list[Any], plan: Mapping[str, Any], was: Identity,
              source: str) -> tuple[Begun, list[Event]]:
    """Returns the run and what has changed since. It keeps its plan, regardless of the available memory, unless the
    options differ. Raises MismatchError for a change that is not allowed.
    """
    previous = from_json(Tradeoffs, plan, source) if was_asked == asked(task.config.to_json()) else None
    was = {**OLDER, **({"method": was["objective"]} if "objective" in was else {}), **was}
    if was["family"] == VALUED:
        was["family"] = LORA
    begun = _open(task, previous, was, record)
    begun.origin = _origin(task, begun.trainer, record.get("origin"))
    changed = differences(task.out, was, begun.identity, task.allow_changed)
    begun.identity.setdefault("start", was["start"])
    begun.event = {"event": "resume", "step": 0, "damaged": [], "changed": changed}
    return begun, changed


def _from_record(task: RunTask, record: Mapping[str, Any]) -> tuple[Begun, list[Event]]:
    kept = {spec.name: record["plan"][spec.name] for spec in fields(Tradeoffs) if spec.name in record["plan"]}
    return _reopened(task, record, asked(record["options"]), kept, record["identity"],
                     f"the plan in {task.out / store.RUN}")


# ---- after a kill before the first checkpoint ------------------------------------------------------------------------


def _again(task: RunTask, record: Mapping[str, Any]) -> Begun:
    """Begins again after such a kill. It leaves metrics, and perhaps an adapter that run.json does not call done; a
    report may have been written since.
    """
    names = {path.name for path in task.out.iterdir()}
    is_begun = record.get("status", "running") == "running" and not record.get("begun_at")
    written = {metrics.NAME, metrics.CSV, metrics.REPORT, reference.FILE, anchored.FILE, store.FILE, store.BESIDE,
               store.RUN, TOML, *store.PROMPT}
    if not (is_begun and names <= written):
        raise FormatError(f"{task.out} holds no checkpoint to continue from: its run has failed, or it is no run",
                          "start in another folder")
    if not record:
        begun = anew(task)
        begun.event = {"event": "resume", "step": 0, "damaged": [], "changed": []}
        return begun
    if task.start is None and record["start"]:
        task = replace(task, start=Path(record["start"]["path"]))
    begun, changed = _from_record(task, record)
    begun.state.start = record["start"]
    begun.state.changed = [{**change, "after_step": 0} for change in changed]
    if task.start:
        begun.trainer.load(task.start)
        begun.trainer.keep_start()
    return begun


# ---- from a checkpoint -----------------------------------------------------------------------------------------------


def _from_checkpoint(task: RunTask, record: Mapping[str, Any]) -> Begun:
    found, damaged = checkpoint.newest(task.out)
    meta = found.meta
    begun, changed = _reopened(task, record, meta["asked"], meta["plan"], meta["identity"],
                               f"the plan in {found.path}")
    begun.state = from_json(RunState, meta["state"], f"the state in {found.path}")
    if task.more and task.more != begun.state.more:
        raise UsageError(f"the run in {task.out} has not ended, it is after step {meta['step']}",
                         "continue it before more epochs are added: resume without them")
    if any(change["name"] == "held-out" for change in changed):
        begun.state = begun.state.forget_measurements()
    _keep_start(begun)
    _restore(begun, found)
    t = begun.trainer
    begun.state.changed += [{**change, "after_step": t.steps_done} for change in changed]
    begun.saved = None if changed else (t.steps_done, begun.state.measured)
    begun.position = int(meta["metrics"])
    begun.event |= {"step": t.steps_done, "damaged": damaged}
    return begun


def _keep_start(begun: Begun) -> None:
    """Reads the run's start adapter again, if answers are compared with it."""
    start = begun.state.start
    if start is None or "start" not in begun.trainer.arena:
        return
    check_start(start)
    begun.trainer.load(start["path"])
    begun.trainer.keep_start()


def check_start(start: Mapping[str, Any]) -> None:
    """Raises MismatchError if the adapter that a run began from has changed."""
    if store.fingerprint_of(start["path"]) != start["fingerprint"]:
        raise MismatchError(f"{start['path']} is not the adapter any more that the run began from, its reference",
                            "put it back, or begin another run")


def _restore(begun: Begun, found: checkpoint.Checkpoint) -> None:
    """Fills the arena; a best adapter that is not in the file is the seed's or the newest one."""
    t = begun.trainer
    s = begun.state
    t.keep_best()
    found.read(t.arena.flat)
    t.steps_done = int(found.meta["step"])
    t.begun_at = s.begun_at
    t.more = s.more
    if s.best_step == t.steps_done:
        t.keep_best()
    t.best_known = s.best is not None
    t.source.restore(found.meta.get("answers"))


# ---- more epochs -----------------------------------------------------------------------------------------------------


def _next_leg(task: RunTask, record: Mapping[str, Any]) -> Begun:
    """Adds epochs after the end: from the adapter in the folder, with a new optimizer and schedule, on the next rows.
    """
    if not task.more:
        raise UsageError(f"the run in {task.out} is finished, after step {record['steps']}",
                         "name how many epochs to add, or begin another run in a new folder")
    if "identity" not in record:
        raise FormatError(f"the run in {task.out} was finished by an edgetune that kept too little to continue it",
                          f"begin another run from its adapter: --start {task.out}")
    begun, changed = _from_record(task, record)
    t = begun.trainer
    s = next_leg(record, task.more)
    if any(change["name"] == "held-out" for change in changed):
        s = s.forget_measurements()
    s.changed = s.changed + [{**change, "after_step": s.begun_at} for change in changed]
    checkpoint.remove_all(task.out)
    begun.state = s
    _keep_start(begun)
    t.load(task.out)
    kept = store.read_beside(task.out)
    for name, array in t.unexported.items():  # such as a value head, which an earlier version did not store
        if name in kept:
            np.copyto(array, kept[name])
    t.keep_best()
    t.best_known = s.best is not None
    t.steps_done = s.begun_at
    t.begun_at = s.begun_at
    t.more = s.more
    begun.state = s
    begun.position = metrics.MetricsFile(task.out).position()
    s.written = max(record["disk"]["written_bytes"] - begun.position, 0)
    begun.event |= {"step": s.begun_at, "more": task.more}
    return begun
