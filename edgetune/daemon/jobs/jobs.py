"""Jobs: asked for, waiting in line, trained one at a time in a separate process, judged, and put into service.

    queued -> running -> succeeded | failed       paused <-> queued, running       cancelled from all but the ends

A job that was accepted has its rows in STATE/runs/ID, whatever becomes of the file. One that runs when the daemon ends,
however it ends, resumes from its last checkpoint when it is back.
"""

from __future__ import annotations

import secrets
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any

from ... import disk
from ...adapters import store as lora
from ...data.rows import Row
from ...errors import TooMuchError, UsageError
from ...persisted import from_json
from ...training.config import TrainConfig
from ..state.adapters import Adapters
from ..state.database import dump, now
from ..state.files import Files, Rows
from ..state.holdout import Holdout
from ..state.shelf import Shelf
from . import recipe
from .queue import Queue
from .table import ENDED, JobTable, Said
from .table import Job as Job

FOLDER = "runs"
NAMES = r"ftjob-[0-9a-z]+"
UNFINISHED = 100  # jobs at most
SUFFIX = 40  # letters


class Jobs:
    """The jobs of a service. For any number of threads. train: options of a job that its request leaves open. runs:
    the shelf of jobs' folders. holdout: which rows judge where a request names none.

    on_done: called with each job that ended, on the thread that runs them. trouble: why none is begun for now, in a
    sentence, or "". governor: its latest decisions, {at, action, cause}, the newest first.
    """

    def __init__(self, table: JobTable, runs: Shelf, work: Queue, files: Files, adapters: Adapters,
                 train: TrainConfig, holdout: Holdout) -> None:
        self.table = table
        self.changed = table.changed
        self.folder = runs.folder
        self.files = files
        self.adapters = adapters
        self.train = train
        self.holdout = holdout
        self._runs = runs
        self._work = work
        runs.tidy(table.ids(ended=False), done=table.ids(ended=True))

    def start(self) -> None:
        self._work.start()

    def stop(self) -> None:
        """Save what is trained, and return when that is done."""
        self._work.stop()

    @property
    def on_done(self) -> list[Callable[[Job], None]]:
        return self._work.on_done

    # ---- asked for ----------------------------------------------------------------------------------------------

    def create(self, model: str, training_file: str, *, validation_file: str | None = None, suffix: str = "",
               seed: int | None = None, method: Mapping[str, Any] | None = None,
               hyperparameters: Mapping[str, Any] | None = None, metadata: Mapping[str, str] | None = None) -> Job:
        """A job over uploaded rows. model: the base or an adapter, whose options are then taken where none are asked
        for; training begins from the base.

        Raises NotFoundError for a model or file, UsageError for options, UnsupportedError for a method, DataError for
        too few rows, TooMuchError for too many jobs, DiskError.
        """
        held = Rows(self.files.content(validation_file)) if validation_file is not None else None
        rows = Rows(self.files.content(training_file))
        return self._add(rows, held, model=model, suffix=suffix, seed=seed, origin="api",
                         method=recipe.method_of(method, hyperparameters), metadata=dict(metadata or {}),
                         training_file=training_file, validation_file=validation_file)

    def create_from_rows(self, rows: Iterable[Row], held: Iterable[Row] | None = None, *, model: str = "",
                         suffix: str = "", seed: int | None = None, hyperparameters: Mapping[str, Any] | None = None,
                         metadata: Mapping[str, str] | None = None, origin: str = "api", established: int = 0) -> Job:
        """A job over rows of a program's own; both are gone through twice. held: rows to judge by; None: a part.
        origin: learn, if they are feedback. established: how many of `held`, its first ones, are of earlier rounds.
        """
        return self._add(rows, held, established, model=model or self.adapters.name, suffix=suffix, seed=seed,
                         origin=origin, method=recipe.method_of(None, hyperparameters), metadata=dict(metadata or {}),
                         training_file=None, validation_file=None)

    def _add(self, rows: Iterable[Row], held: Iterable[Row] | None, established: int = 0, *, model: str, suffix: str,
             seed: int | None, method: dict[str, Any], **columns: Any) -> Job:
        if not all(letter.isascii() and (letter.isalnum() or letter in "._-") for letter in suffix):
            raise UsageError(f"suffix is {suffix!r:.60}", "use letters, digits, dots, dashes and underscores")
        if len(suffix) > SUFFIX:
            raise UsageError(f"suffix has {len(suffix)} letters", f"use {SUFFIX} at most")
        base, said = self._base_options(model)
        _, asked = recipe.objective_of(method)
        if seed is not None:
            asked["seed"] = seed
        config = recipe.options(base, asked)
        if len(self.table.ids(ended=False)) >= UNFINISHED:
            raise TooMuchError(f"{UNFINISHED} jobs are not finished", "wait for some or cancel them")
        job = f"ftjob-{secrets.token_hex(12)}"
        row = {"id": job, "created_at": now(), "status": "queued", "model": model, "suffix": suffix,
               "seed": config.seed, "method": dump(method), "config": dump(config.to_json()), **columns,
               "metadata": dump(columns["metadata"])}
        with self._runs.filling(job) as beside:
            beside.mkdir()
            sides = recipe.divide(rows, held, beside, self.holdout, established)
            disk.sync_whole(beside)
            created = (f"created with {sides['train']['rows']} rows to learn, {sides['held_out']['rows']} held out",
                       {"rows": sides, "config": config.to_json()})
            with self.changed:
                self.table.insert(row, [created, *said])
                self._runs.settle(job)
        return self.get(job)

    def _base_options(self, model: str) -> tuple[TrainConfig, list[Said]]:
        """What a job's request leaves open, by the model that it names, and what there is to say about it."""
        found = self.adapters.named(model)
        if found is None:
            return self.train, []
        run = lora.open_adapter(self.adapters.path(found)).run
        options = from_json(TrainConfig, run.get("options", {}), f"{lora.RUN} of {found}")
        return replace(options, memory=""), [(
            f"takes the options of {found} where none are given; training begins from the base", None)]

    # ---- looked at ----------------------------------------------------------------------------------------------

    @property
    def trouble(self) -> str:
        return self._work.trouble

    @property
    def governor(self) -> Sequence[dict[str, Any]]:
        return list(self._work.decisions)

    @property
    def pid(self) -> int | None:
        """Of the process that trains now."""
        return self._work.pid

    @property
    def running(self) -> Job | None:
        """The job whose process is at work."""
        id = self._work.job
        return self.get(id) if id else None

    def unfinished(self, origin: str) -> str | None:
        """The id of a job of this origin that has not ended."""
        return self.table.unfinished(origin)

    def get(self, id: str) -> Job:
        """Raises NotFoundError."""
        return self._with_progress(self.table.get(id))

    def list(self, after: str | None = None, limit: int = 100) -> Sequence[Job]:
        """The newest first, at most `limit` of them, those older than the job `after`."""
        return [self._with_progress(job) for job in self.table.list(after, limit)]

    def _with_progress(self, job: Job) -> Job:
        return replace(job, progress=self._work.progress_of(job.id))

    def events(self, id: str, after: str | None = None, limit: int = 20) -> Sequence[dict[str, Any]]:
        """What happened to a job, the latest first, as OpenAI has it: id, created_at, level, type, message, data.

        Of type metrics are the lines of a run's metrics.jsonl, in data. Raises NotFoundError.
        """
        return self.table.events(id, after, limit)

    def checkpoints(self, id: str, after: str | None = None, limit: int = 10) -> Sequence[dict[str, Any]]:
        """Measurements of the held-out loss, the latest first, in OpenAI's words. Raises NotFoundError."""
        return self.table.checkpoints(id, after, limit)

    def wait(self, id: str, timeout: float | None = None) -> Job:
        """The job when it has ended, or as it is after `timeout` seconds. Raises NotFoundError."""
        with self.changed:
            self.changed.wait_for(lambda: self.get(id).status in ENDED, timeout)
        return self.get(id)

    # ---- steered ------------------------------------------------------------------------------------------------

    def pause(self, id: str) -> Job:
        """Save it and set it aside until it is resumed. Raises NotFoundError, and UsageError where that cannot be."""
        return self._turn(id, ("queued", "running"), "paused", "pause")

    def resume(self, id: str) -> Job:
        """Put it in line again. Raises NotFoundError, and UsageError where it is not paused."""
        return self._turn(id, ("paused",), "queued", "resume")

    def cancel(self, id: str) -> Job:
        """End it; nothing of it is kept but its events. Raises NotFoundError, and UsageError where it has ended."""
        return self._turn(id, ("queued", "running", "paused"), "cancelled", "cancel")

    def _turn(self, id: str, allowed: Sequence[str], status: str, verb: str) -> Job:
        with self.changed:
            job = self.get(id)
            if job.status not in allowed:
                raise UsageError(f"the job {id} is {job.status}", f"{verb} one that is {' or '.join(allowed)}")
            text = "in line again" if status == "queued" else f"{status} as asked"
            if status == "cancelled" and self._work.job != id:
                self._runs.remove(id, lambda: self.table.set(id, status, text))
                self._work.forget(id)
                return self.get(id)
            self.table.set(id, status, text)
            if self._work.job == id:
                self._work.leave(at_once=status == "cancelled")
        return self.get(id)
