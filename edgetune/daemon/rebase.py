"""Rebase: another base learns all feedback that a daemon has learned, and is evaluated by the same held-out questions.

The feedback is kept, not the weights that it led to. So a rebase is a daemon without clients. Its state is a copy of
the old one with feedback and the key of held-out questions, and its base is the new one. Its only job learns all
learned feedback as if it were new. Anchors, memory, the gate and continuing after a power cut are those of a daemon.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from .. import disk
from ..adapters import store as lora
from ..errors import DiskError, EdgetuneError, FormatError, Interrupted, NotFoundError, UsageError
from ..formats.bundle import open_bundle
from ..formats.named import find_model
from ..formats.work import finish, refuse_made, remove
from ..machine.policy import Policy
from ..objectives.sft import Sft
from ..options import AUTO
from ..training.config import TrainConfig
from .jobs.decide import without_scores
from .jobs.table import ENDED, Job
from .kinds.feedback import ALL
from .options import DaemonConfig, without_parts
from .service import Service
from .state import adapters
from .state.database import NAME as DATABASE
from .state.database import Store
from .state.holdout import KEY

WORK = ".rebase"  # after OUT's name: the working folder, until OUT is complete
SYSTEM = "system.txt"  # in it: the system message of the adapter that was active in the state, if there is one
RECORD = "rebase.json"  # in it: the options of the rebase
COPIED = (DATABASE, f"{DATABASE}-wal", KEY)
CLEARED = """DELETE FROM checkpoints; DELETE FROM events; DELETE FROM jobs; DELETE FROM adapters; DELETE FROM service;
             DELETE FROM files; UPDATE feedback SET job = NULL WHERE state = 'new'"""
POLL = 0.5  # seconds between two looks at the job
EVENTS = 200  # that are read at a time at most


@dataclass(frozen=True)
class Rebased:
    """The result of a rebase. out: the folder of the adapter. rows: number of learned rows, each learned several times;
    held: number of held-out rows. verdict: the gate's, compared with the new base, without the scores of rows.
    """

    out: Path
    rows: int
    held: int
    verdict: dict[str, Any]

    @property
    def sentence(self) -> str:
        passed = "would be activated" if self.verdict["passed"] else "would not be activated"
        return f"learned {self.rows} rows on the new base; {passed}: {self.verdict['reason']}"


def rebase(model: str | Path, state: str | Path, out: str | Path, *, config: DaemonConfig | None = None,
           policy: Policy | None = None, train: TrainConfig | None = None,
           should_stop: Callable[[], bool] = lambda: False,
           on_event: Callable[[dict[str, Any]], None] = lambda _: None) -> Rebased:
    """Trains `model` on all that the daemon with this state folder has learned, and writes the adapter's folder `out`.
    `state` does not change.

    config, policy, train: as of a Service; of config, only memory, context, threads and canary are used. on_event:
    called with the events of the training. The verdict is in run.json, as `gate`. A rebase that was stopped is
    continued by the same call, with the content of the state when it began.

    Raises UsageError where `out` exists, a daemon holds `state`, nothing was learned or held out there, or another
    rebase to `out` has begun; NotFoundError for no state; Interrupted where should_stop returned True; errors of jobs.
    """
    target = Path(out)
    work = target.with_name(f"{target.name}{WORK}")
    refuse_made(target, work)
    config = config or DaemonConfig()
    imitates = config.learn_method in (AUTO, Sft.name)
    grader = "" if imitates else config.learn_grader  # of a part
    config = replace(without_parts(config), state=str(work), learn="off", learn_grader=grader).check()
    train = (train or TrainConfig(threads=config.threads)).check()
    asked = {"model": open_bundle(find_model(model)).fingerprint, "from": str(Path(state).resolve()),
             "train": {name: value for name, value in train.to_json().items() if name != "threads"}}
    _begin(work, Path(state), asked)
    file = work / SYSTEM
    train = replace(train, system=train.system or (file.read_text(encoding="utf-8") if file.exists() else ""))
    try:
        with Service(model, config, policy, train) as service:
            begun = service.jobs.list(limit=1)
            job = begun[0] if begun else service.learner.begin(ALL)
            job = _followed(service, job.id, should_stop, on_event)
            if job.result is None:
                raise EdgetuneError(f"the training {job.status}: {(job.error or {}).get('message', 'it was ended')}",
                                    "with other options it may succeed")
            found = _written(service, job, target, work)
    except (Interrupted, DiskError):  # continued by the same call
        raise
    except EdgetuneError:
        shutil.rmtree(work, ignore_errors=True)
        raise
    remove(work)
    return found


def _begin(work: Path, state: Path, asked: dict[str, Any]) -> None:
    """Makes the working folder, unless it exists already."""
    if work.exists():
        if json.loads((work / RECORD).read_text()) != asked:
            raise UsageError(f"{work} holds a rebase of another state, to another base or with other options",
                             "continue that one, remove it, or name another output")
        return
    if not (state / DATABASE).is_file():
        raise NotFoundError(f"{state} is no state folder of a daemon: it has no {DATABASE}",
                            "name the folder that its --state gave it")
    try:
        with disk.alone(state), disk.new_folder(work) as beside:
            _copy(state, beside)
            (beside / RECORD).write_text(json.dumps(asked))
    except UsageError:
        raise UsageError(f"a daemon holds {state}, or another program",
                         "stop it until the copy is made, or give a copy of the folder") from None


def _copy(state: Path, beside: Path) -> None:
    """Copies feedback and the key of held-out questions; all that belongs to the old base is left out."""
    disk.private_folder(beside)  # it holds what people wrote, and the key that nobody else may know
    for name in COPIED:
        if (state / name).exists():
            disk.copy_private(state / name, beside / name)
    copied = Store(beside)
    try:
        active = copied.read("SELECT folder FROM adapters WHERE id = "
                             "(SELECT adapter FROM service ORDER BY seq DESC LIMIT 1)")
        if active:
            with suppress(FormatError):  # feedback is enough where the adapter is lost
                system = lora.read_system(state / adapters.FOLDER / str(active[0]["folder"]))
                (beside / SYSTEM).write_text(system, encoding="utf-8")
        with copied.write() as db:
            for statement in CLEARED.split(";"):
                db.execute(statement)
    finally:
        copied.close()


def _followed(service: Service, id: str, should_stop: Callable[[], bool],
              on_event: Callable[[dict[str, Any]], None]) -> Job:
    """Returns the job when it has ended; passes on the events of its training."""
    last = None
    while True:
        if should_stop():
            raise Interrupted("the rebase was stopped", "continue with the same command")
        job = service.jobs.wait(id, POLL)
        fresh = []
        for event in service.jobs.events(id, limit=EVENTS):
            if event["id"] == last:
                break
            fresh.append(event)
        for event in reversed(fresh):
            last = event["id"]
            if event["type"] == "metrics":
                on_event(event["data"])
        if job.status in ENDED:
            return job


def _written(service: Service, job: Job, target: Path, work: Path) -> Rebased:
    """Writes the adapter of a job as a folder, with the gate's verdict in run.json."""
    assert job.result
    made = service.adapters.get(job.result)
    verdict = without_scores(made.verdict)
    with disk.new_folder(target) as beside:
        for file in filter(Path.is_file, service.adapters.path(made.id).iterdir()):
            if file.name != adapters.RECORD:
                shutil.copyfile(file, beside / file.name)
        lora.save_record(beside, {**lora.read_run(beside), "gate": verdict})
        finish(work, beside)
    return Rebased(target, int(job.metadata["new"]), int(job.metadata["held"]), verdict)
