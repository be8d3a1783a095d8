"""A device's part of a round: it learns its rows from the task's adapter, and writes what changed as its answer.

The run is an ordinary one, in a folder next to the answer: within the memory, under the governor, with checkpoints. The
same command continues it. AdamW's moments begin again each round: those of other devices would not fit.

A member of a folder of rounds writes into its own answer only (places.py), and the lead writes the tasks, so that no
two write the same file. What a device computes with, and its checkpoints, are in a separate folder.
"""

from __future__ import annotations

import math
import shutil
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ....adapters import store
from ....adapters.lora import Lora, Pair
from ....disk import make_folder, new_folder
from ....errors import Interrupted, MismatchError, UsageError
from ....formats.bundle import Bundle
from ....formats.signature import unchecked
from ....formats.work import refuse_made, remove
from ....machine.device import read_device
from ....runs.train import train
from ....training.callbacks import Event, RunCallbacks
from ....training.config import TrainConfig
from ....version import __version__
from .answer import VERSION, AnswerFacts, began_at, open_answer, write_answer
from .low_rank_sums import squared_norm, term_of
from .options import A, B, Noise
from .places import RoundPlace, check_name, newest
from .reach import rate_of, share_of
from .task import RoundTask, open_task

CONTINUE = "continue with the same command"
Arrays = dict[str, NDArray[np.float16]]
AnsweredRound = tuple[RoundPlace, AnswerFacts]


def noisy(arrays: Arrays, noise: Noise, seed: int | None = None) -> Arrays:
    """Returns the arrays, scaled to a norm at most and with Gaussian noise on each value: the step of a device in
    differential privacy at the level of devices; privacy.py says what it is worth. Noise on a frozen half's partner
    stays linear in the sum; on A and B it would multiply (Sun et al. 2024). seed: for tests [the system's entropy].
    """
    rng = np.random.default_rng(seed)
    norm = math.sqrt(sum(float(np.sum(array.astype(np.float64) ** 2)) for array in arrays.values()))
    scale = min(1.0, noise.most / norm) if norm else 1.0
    return {name: (scale * array + noise.deviation * rng.standard_normal(array.shape)).astype(np.float16)
            for name, array in arrays.items()}


def train_round(task: RoundTask, bundle: Bundle, rows: Path, out: Path, device: str, *, held_out: str | None = None,
                rank: int = 0, noise: Noise | None = None, key: Path | None = None,
                callbacks: RunCallbacks | None = None, **own: Any) -> AnswerFacts:
    """Learns the rows, and writes the answer to the new folder `out`; returns its facts. held_out: a file of rows,
    "none", or a tenth of `rows`. rank: of this device, 0 for the task's; a smaller one takes less memory. noise: added
    to the answer. own: options that a device decides for itself, such as memory.

    Raises UsageError if `out` exists, MismatchError if there are fewer rows than the task asks for, Interrupted
    if it was stopped: the same call continues.
    """
    work = out.with_name(f"{out.name}.work")
    refuse_made(out, work)
    noise = _noise_of(task, noise)
    config = _config(task, rank, own)
    config = replace(config, lr=rate_of(config, rows) * share_of(task.options.planned_rounds, task.number))
    began = {name: began_at(pair, config.family.options()["rank"]) for name, pair in task.pairs.items()}
    make_folder(work)
    start = _start(task, bundle, work, began, config)
    run = work / "run"
    record = store.read_run(run) if run.exists() else {}
    if record.get("status") != "done":
        try:
            record = train(bundle, rows, run, held_out, config=config, start=start, resume=run.exists(), answers=False,
                           callbacks=_checked(callbacks or RunCallbacks(), task)).record
        except Interrupted as stop:
            raise Interrupted(stop.what, f"the state is in {work}: {CONTINUE}") from None
        except BaseException:
            with suppress(OSError):
                work.rmdir()  # if nothing was saved
            raise
    elif record["start"]["fingerprint"] != store.fingerprint_of(start):
        raise MismatchError(f"{work} is of another task", "remove it, or name another answer")
    facts = _facts(task, device, record, config)
    after = store.open_adapter(run, bundle.gguf).pairs
    arrays = changes(task, began, after)
    if noise is not None:
        arrays = noisy(arrays, noise)
        after = _with(task, began, arrays)
        facts = _hidden(task, facts, noise)
    facts = replace(facts, norm=norm_of_change(began, after))
    facts = write_answer(out, facts, arrays, key, work)
    remove(work)
    return facts


def _config(task: RoundTask, rank: int, own: dict[str, Any]) -> TrainConfig:
    """Returns the task's options with the device's own."""
    most = task.config.family.options()["rank"]
    if rank and (task.half != A + B or rank > most):
        why = f"above the task's {most}" if rank > most else "and the task sums one half, which has one rank"
        raise UsageError(f"rank is {rank}, {why}", "leave --rank out")
    size = {"rank": rank, "alpha": task.config.family.options()["alpha"] * rank / most} if rank else {}
    return TrainConfig(**{**vars(task.config), **size, **own}).check()


def _noise_of(task: RoundTask, own: Noise | None) -> Noise | None:
    """Returns the noise of the task, or this device's own. Raises UsageError for both, and if two halves are trained.
    """
    if own is None or task.noise is None:
        if own is not None and task.half == A + B:
            raise UsageError("noise is given, and the task trains A and B, in whose product it would multiply",
                             "take part without it, or in a fleet with --aggregation frozen-a")
        return task.noise or own
    raise UsageError(f"noise is given, and the task says how much: {task.noise.multiplier:g} times "
                     f"{task.noise.most:g}", "leave --noise out")


def _hidden(task: RoundTask, facts: AnswerFacts, noise: Noise) -> AnswerFacts:
    """Returns the facts without what would tell of the rows beyond the noise."""
    facts = replace(facts, noise=noise.deviation, noise_norm=noise.most, held_rows=0, loss_before=None, loss_after=None,
                    seconds=0.0, peak_mib=0.0)  # both grow with the rows
    return replace(facts, rows=task.facts.least_rows, tokens=1) if task.noise else facts


def _with(task: RoundTask, began: Lora, arrays: Arrays) -> Lora:
    """Returns the pairs after the change of one half."""
    changed = {name: arrays[f"{name}.{task.half}"].astype(np.float32) for name in began}
    return {name: Pair(pair.a + changed[name], pair.b, pair.scale) if task.half == A else
            Pair(pair.a, pair.b + changed[name], pair.scale) for name, pair in began.items()}


def _start(task: RoundTask, bundle: Bundle, work: Path, began: Lora, config: TrainConfig) -> Path:
    """Returns the adapter that the run begins from: the task's, or one at this device's rank."""
    if config.family.options()["rank"] == task.config.family.options()["rank"]:
        return task.adapter
    start = work / "start"
    if not start.exists():
        store.save_adapter(start, began, bundle.gguf, {"options": config.to_json()})
    return start


def _checked(calls: RunCallbacks, task: RoundTask) -> RunCallbacks:
    """Returns the callbacks, which raise MismatchError before the first step if there are too few rows."""

    def look(event: Event) -> None:
        if event["event"] == "start" and event["rows"] < task.facts.least_rows:
            raise MismatchError(f"{event['rows']} rows are left to learn, the task asks for {task.facts.least_rows}",
                                "take part when there are more")
        calls.on_event(event)

    return replace(calls, name=f"round {task.number}", on_event=look)


def changes(task: RoundTask, began: Lora, after: Lora) -> Arrays:
    """Returns the arrays of the answer: the change of the trained half, or both factors. Values out of range are
    infinite.
    """
    found: Arrays = {}
    with np.errstate(over="ignore"):  # write_answer refuses them
        for name, pair in after.items():
            for half in task.half:
                value = getattr(pair, half) * np.float32(pair.scale / began[name].scale if half == B else 1.0)
                found[f"{name}.{half}"] = (value if task.half == A + B else value - getattr(began[name], half)).astype(
                    np.float16)
    return found


def norm_of_change(began: Lora, after: Lora) -> float:
    """Returns the Frobenius norm of the change of all projections' weights."""
    return math.sqrt(sum(squared_norm([term_of(pair), term_of(began[name], -1.0)]) for name, pair in after.items()))


def _facts(task: RoundTask, device: str, record: dict[str, Any], config: TrainConfig) -> AnswerFacts:
    held = record["held_out"] or {}
    return AnswerFacts(
        VERSION, task.name, device, task.base.fingerprint, "", task.half, config.family.options()["rank"],
        record["data"]["rows"], record["data"]["supervised"], 0.0, held_rows=held.get("rows", 0),
        loss_before=held.get("loss_before"), loss_after=held.get("loss_after"),
        seconds=round(record["seconds"], 1), peak_mib=round(record["peak_rss_mib"], 1), edgetune=__version__,
        kind=read_device().kind)


@dataclass
class Member:
    """A device that answers each round of a folder. work: a separate folder for what it computes with; own: as of
    `train_round`.
    """

    folder: Path
    bundle: Bundle
    rows: Path
    device: str
    work: Path
    held_out: str | None
    rank: int
    noise: Noise | None
    key: Path | None
    own: dict[str, Any]

    def answer(self, callbacks: RunCallbacks) -> AnsweredRound | None:
        """Answers the newest round; returns it and the facts of the answer, or None if it is answered. Raises the
        errors of open_task and train_round.
        """
        place = newest(self.folder)
        if (place.answers / check_name(self.device)).exists():
            return None
        return self.make(place, callbacks)

    def make(self, place: RoundPlace, callbacks: RunCallbacks) -> AnsweredRound:
        """Makes the answer to a round. Raises as `answer`."""
        out = place.answers / self.device
        task = open_task(place.task, self.bundle)
        made = self.work / f"{check_name(self.device)}-{task.name[:16]}"  # two devices may share a home folder
        if not made.exists():
            train_round(task, self.bundle, self.rows, made, self.device, held_out=self.held_out, rank=self.rank,
                        noise=self.noise, key=self.key, callbacks=callbacks, **self.own)
        with new_folder(out) as beside:
            shutil.copytree(made, beside, dirs_exist_ok=True)
        shutil.rmtree(made, ignore_errors=True)
        return place, open_answer(out, task, unchecked).facts
