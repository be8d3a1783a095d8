"""Jobs are created, queued, trained one at a time in a separate process and evaluated; then their adapters become
active.

    queued -> running -> succeeded | failed       paused <-> queued, running       cancelled from any that has not ended

A job that was running is pausing until its training is saved.

An accepted job has its rows in STATE/runs/ID, even if the file is deleted. A job that runs when the daemon ends or is
killed resumes from its last checkpoint at the next start.
"""

from __future__ import annotations

import secrets
import sqlite3
import threading
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from ... import disk
from ...adapters import store as lora
from ...data import prompts
from ...data.rows import Row
from ...errors import EdgetuneError, NotFoundError, TooMuchError, UsageError
from ...objectives.sft import Sft
from ...persisted import from_json
from ...training.config import TrainConfig
from ..kinds.base import FileJob
from ..options import AllowedPython
from ..state.adapters import Adapters
from ..state.database import dump, now
from ..state.files import PURPOSE, Files, lines_of
from ..state.holdout import Holdout
from ..state.shelf import Shelf
from . import recipe
from .queue import Queue
from .rewards import REWARD, with_rewards
from .table import ENDED, JobTable, Note, Take
from .table import Job as Job

FOLDER = "runs"
NAMES = r"ftjob-[0-9a-z]+"
UNFINISHED = 100  # jobs at most
SUFFIX = 40  # letters at most
FileIds = tuple[str | None, str | None]  # for training and validation


@dataclass(frozen=True)
class JobData:
    """Rows of a job, iterated over twice; None: it learns nothing. held: rows that are held out; None: a part of
    `rows`. rounds: of the first of `held`, which are of earlier feedback jobs, the job of each. corrected: rows that
    people corrected, whose answers the gate checks. measured: rows whose loss, or reward, is measured during the
    training; none: the held-out rows, where they have one. drawn: questions that were drawn from all that people asked.
    fill: writes further files of its kind into the folder of the job. take: assigns what it learns to the job of an id,
    in the transaction that adds the job. system: the system message of rows without one, which is people's text too: it
    lies with the rows and goes with them. None: that of the options.
    """

    rows: Iterable[Row] | None
    held: Iterable[Row] | None
    rounds: Sequence[str] = ()
    corrected: Iterable[Row] = ()
    measured: Iterable[Row] = ()
    drawn: recipe.DrawnQuestions = recipe.NONE_DRAWN
    fill: Callable[[Path], object] | None = None
    take: Take | None = None
    system: str | None = None


@dataclass(frozen=True)
class _Request:
    """A request for a job, by the names of the table's columns."""

    model: str
    suffix: str
    seed: int | None
    method: dict[str, Any]
    metadata: dict[str, str]
    origin: str
    training_file: str | None = None
    validation_file: str | None = None


class Jobs:
    """The jobs of a service, for any number of threads. train: options of a job that its request leaves open. runs: the
    shelf of jobs' folders. holdout: which rows are held out where a request names none. python: code that clients may
    have run. supervised: the method by which the model learns right answers.

    on_done: called with each job that ended, on the thread that runs them. paused_reason: why none is begun for now, in
    a sentence, or "". governor: its latest decisions, {at, action, cause}, the newest first.
    """

    def __init__(self, table: JobTable, runs: Shelf, queue: Queue, files: Files, adapters: Adapters,
                 train: TrainConfig, holdout: Holdout, python: AllowedPython, supervised: str = Sft.method) -> None:
        self.table = table
        self.changed = table.changed
        self.folder = runs.folder
        self.files = files
        self.adapters = adapters
        self.train = train
        self.holdout = holdout
        self.python = python
        self.supervised = supervised
        self._runs = runs
        self._queue = queue
        runs.tidy(table.ids(ended=False), done=table.ids(ended=True))

    def start(self) -> None:
        self._queue.start()

    def stop(self) -> None:
        """Saves the training, and returns when that is done."""
        self._queue.stop()

    def threads(self) -> Sequence[threading.Thread]:
        return [self._queue.thread]

    @property
    def on_done(self) -> list[Callable[[Job], None]]:
        return self._queue.on_done

    # ---- creating -----------------------------------------------------------------------------------------------

    def create(self, model: str, training_file: str, *, validation_file: str | None = None, suffix: str = "",
               seed: int | None = None, method: Mapping[str, Any] | None = None,
               hyperparameters: Mapping[str, Any] | None = None, metadata: Mapping[str, str] | None = None) -> Job:
        """Creates a job over uploaded rows. model: the base or an adapter, whose options are defaults of the request;
        training begins from the base.

        Raises NotFoundError for a model or file, UsageError for options and for a file of results, and UnsupportedError
        for a method. Raises DataError for too few rows, TooMuchError for too many jobs, and DiskError.
        """
        method = recipe.method_of(method, hyperparameters, self.supervised)
        asking = recipe.objective_of(method)[0].rows.shape_of is prompts.shape_of
        held = self.files.rows(validation_file, asking) if validation_file is not None else None
        data = _checked(self.files.rows(training_file, asking), held, method, self.python)
        return self._add(data, _Request(model, suffix, seed, method, dict(metadata or {}), FileJob.origin,
                                        training_file, validation_file))

    def check_grader(self, method: Mapping[str, Any], hyperparameters: Mapping[str, Any]) -> None:
        """Raises UsageError for a grader that is missing, wrong or not allowed; `create` checks all else."""
        named = {name: value for name, value in hyperparameters.items() if name == REWARD}
        objective, _ = recipe.objective_of(recipe.method_of(method, named, self.supervised))
        with_rewards(objective, self.python)

    def create_from_rows(self, rows: Iterable[Row], held: Iterable[Row] | None = None, *, model: str = "",
                         suffix: str = "", seed: int | None = None, hyperparameters: Mapping[str, Any] | None = None,
                         metadata: Mapping[str, str] | None = None) -> Job:
        """Creates a job over rows of the calling program, which become an uploaded file: `files.delete` removes it.

        held: None holds out a part of `rows`. Raises as `create` and `Files.add`.
        """
        with ExitStack() as refused:
            def added(rows: Iterable[Row]) -> str:
                id = self.files.add("rows", PURPOSE, lines_of(rows)).id
                refused.callback(self.files.delete, id)
                return id

            job = self.create(model or self.adapters.name, added(rows), suffix=suffix, seed=seed,
                              validation_file=None if held is None else added(held),
                              hyperparameters=hyperparameters, metadata=metadata)
            refused.pop_all()
        return job

    def begin(self, origin: str, data: JobData, method: Mapping[str, Any], *, suffix: str,
              hyperparameters: Mapping[str, Any], metadata: Mapping[str, str],
              files: FileIds = (None, None), note: str = "") -> Job:
        """Begins a job of this origin's kind, over rows that are checked. files: for training and validation, whose
        rows its adapter will have learned too. note: for its history. Raises as `create`.
        """
        method = recipe.method_of(method, hyperparameters, self.supervised)
        request = _Request(self.adapters.name, suffix, None, method, dict(metadata), origin, *files)
        return self._add(data, request, [(note, None)] if note else [])

    def _add(self, data: JobData, request: _Request, notes: Sequence[Note] = ()) -> Job:
        check_suffix(request.suffix)
        objective, asked = recipe.objective_of(request.method)
        base, of_base = self._base_options(request.model)
        base = replace(base, **objective.defaults)
        if request.seed is not None:
            asked["seed"] = request.seed
        config = recipe.options(base, asked, objective.options())
        if len(self.table.ids(ended=False)) >= UNFINISHED:
            raise TooMuchError(f"{UNFINISHED} jobs are not finished", "wait for some or cancel them")
        job = f"ftjob-{secrets.token_hex(12)}"
        row = {**vars(request), "id": job, "created_at": now(), "status": "queued", "seed": config.seed,
               "method": dump(request.method), "config": dump(config.to_json()), "metadata": dump(request.metadata)}
        with self._runs.filling(job) as beside:
            beside.mkdir()
            sides = recipe.divide(data.rows, data.held, beside, self.holdout, data.rounds,
                                  data.corrected, data.measured, data.drawn)
            selecting = recipe.halve(beside, objective.rows) if request.origin == FileJob.origin else 0
            if data.fill:
                data.fill(beside)
            if data.system is not None and "system" not in asked:
                (beside / recipe.SYSTEM).write_text(data.system, encoding="utf-8")
            disk.sync_whole(beside)
            created = (f"created with {sides['train']['rows']} rows to learn, {sides['held_out']['rows']} held out"
                       + (f", of which {selecting} choose the checkpoint" if selecting else ""),
                       {"rows": sides, "config": config.to_json()})
            with self.changed:
                self.table.insert(row, [created, *of_base, *notes], data.take)
                self._runs.settle(job)
        return self.get(job)

    def _base_options(self, model: str) -> tuple[TrainConfig, list[Note]]:
        """Returns the options that a request leaves open, by the model that it names, and notes to record on them."""
        found = self.adapters.named(model)
        if found is None:
            return self.train, []
        run = lora.read_run(self.adapters.path(found))
        options = from_json(TrainConfig, run.get("options", {}), f"{lora.RUN} of {found}")
        prompt = self.train.prompt  # a client may have added the adapter, so no path of its record is opened
        return replace(options, prompt=prompt, memory="", prompt_column="", completion_column=""), [(
            f"takes the options of {found} where none are given; training begins from the base", None)]

    # ---- looking up ---------------------------------------------------------------------------------------------

    @property
    def paused_reason(self) -> str:
        return self._queue.paused_reason

    def reasons(self) -> Sequence[str]:
        """Returns why jobs do not train now, a sentence each."""
        try:
            waits = [f"{id} is {why}; resume or cancel it" for id, why in self.table.paused_by_itself()]
        except (sqlite3.Error, EdgetuneError) as error:
            waits = [f"the jobs in {self.table.store.path} cannot be read: {error}"]
        return [*filter(None, [self.paused_reason]), *waits]

    @property
    def governor(self) -> Sequence[dict[str, Any]]:
        return list(self._queue.decisions)

    @property
    def pid(self) -> int | None:
        """Returns the id of the process that trains now."""
        return self._queue.pid

    @property
    def running(self) -> Job | None:
        """Returns the job whose process runs now."""
        id = self._queue.job
        return self.get(id) if id else None

    def get(self, id: str) -> Job:
        """Returns a job. Raises NotFoundError."""
        return self._whole(self.table.get(id))

    def list(self, after: str | None = None, limit: int = 100) -> Sequence[Job]:
        """Returns jobs, the newest first, at most `limit` of them, those older than the job `after`."""
        return [self._whole(job) for job in self.table.list(after, limit)]

    def of_active(self) -> Job | None:
        """Returns the job that made the active adapter; None: the base answers alone, or the job is not known."""
        serving = self.adapters.serving
        with suppress(NotFoundError):
            return self.get(self.adapters.get(serving).job) if serving else None
        return None

    def _whole(self, job: Job) -> Job:
        """Adds to a job the fields that its row does not hold."""
        is_saved = self._queue.job != job.id
        status = "pausing" if job.status == "paused" and not is_saved else job.status
        return replace(job, status=status, progress=self._queue.progress_of(job.id),
                       result_files=self.files.results(job.id), report=self.adapters.report_of(job.id))

    def events(self, id: str, after: str | None = None, limit: int = 20) -> Sequence[dict[str, Any]]:
        """Returns a job's events, the latest first, as OpenAI has them: id, created_at, level, type, message, data.

        Events of type metrics have the lines of a run's metrics.jsonl in data. Raises NotFoundError.
        """
        return self.table.events(id, after, limit)

    def checkpoints(self, id: str, after: str | None = None, limit: int = 10) -> Sequence[dict[str, Any]]:
        """Returns measurements of the held-out loss, the latest first, in OpenAI's words. Raises NotFoundError."""
        return self.table.checkpoints(id, after, limit)

    def wait(self, id: str, timeout: float | None = None) -> Job:
        """Returns the job when it has ended, or its state after `timeout` seconds. Raises NotFoundError."""
        with self.changed:
            self.changed.wait_for(lambda: self.get(id).status in ENDED, timeout)
        return self.get(id)

    # ---- pausing and cancelling ---------------------------------------------------------------------------------

    def pause(self, id: str) -> Job:
        """Saves a job until it is resumed. Raises NotFoundError, and UsageError for one that has ended."""
        return self._set_status(id, ("queued", "running"), "paused", "pause")

    def resume(self, id: str) -> Job:
        """Puts a job into the queue again. Raises NotFoundError, and UsageError where it is not paused."""
        return self._set_status(id, ("paused", "pausing"), "queued", "resume")

    def cancel(self, id: str) -> Job:
        """Ends a job; only its events are kept. Raises NotFoundError, and UsageError where it has ended."""
        return self._set_status(id, ("queued", "running", "paused", "pausing"), "cancelled", "cancel")

    def _set_status(self, id: str, allowed: Sequence[str], status: str, verb: str) -> Job:
        with self.changed:
            job = self.get(id)
            if job.status not in allowed:
                raise UsageError(f"the job {id} is {job.status}", f"{verb} one that is {' or '.join(allowed)}")
            text = "in the queue again" if status == "queued" else f"{status} on request"
            if status == "cancelled" and self._queue.job != id:
                self._runs.remove(id, lambda: self.table.set(id, status, text))
                self._queue.forget(id)
                return self.get(id)
            self.table.set(id, status, text)
            if self._queue.job == id:
                self._queue.end_process(at_once=status == "cancelled")
        return self.get(id)


def _checked(rows: Iterable[Row], held: Iterable[Row] | None, method: Mapping[str, Any],
             python: AllowedPython) -> JobData:
    """Returns rows that are checked while they are read: method and gate must be able to use them."""
    objective, rewards = with_rewards(recipe.objective_of(method)[0], python)
    checked = partial(recipe.CheckedRows, parser=objective.rows, rewards=rewards)
    return JobData(checked(rows, learns=True, judges=held is None),
                   None if held is None else checked(held, learns=False, judges=True))


def check_suffix(suffix: str) -> None:
    """Raises UsageError for what cannot be a part of an adapter's id."""
    if not all(letter.isascii() and (letter.isalnum() or letter in "._-") for letter in suffix):
        raise UsageError(f"suffix is {suffix!r:.60}", "use letters, digits, dots, dashes and underscores")
    if len(suffix) > SUFFIX:
        raise UsageError(f"suffix has {len(suffix)} letters", f"use {SUFFIX} at most")
