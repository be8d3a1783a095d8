"""Jobs: asked for, waiting in line, trained one at a time in a process of their own, judged, and put into service.

    queued -> running -> succeeded | failed       paused <-> queued, running       cancelled from all but the ends

A job that was accepted has its rows in STATE/runs/ID, whatever becomes of the file. One that runs when the daemon ends,
however it ends, goes on from its last checkpoint when it is back.
"""

from __future__ import annotations

import json
import logging
import secrets
import shutil
import sqlite3
import threading
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from .. import adapter as lora
from .. import disk
from ..config import TrainConfig
from ..errors import NotFoundError, TooMuchError, UsageError
from ..rows import Row
from . import recipe
from .files import Rows
from .store import add_event, dump, now
from .work import Work

if TYPE_CHECKING:
    from .service import Service

log = logging.getLogger("edgetune.daemon")
FOLDER = "runs"
ENDED = ("succeeded", "failed", "cancelled")
UNFINISHED = 100  # jobs at most
SUFFIX = 40  # letters


@dataclass(frozen=True)
class Job:
    """As the table has it, JSON read. progress, while it runs and as far as known: phase, step, steps, loss,
    held_out_loss, tokens_per_s, eta_s.
    """

    id: str
    created_at: int
    started_at: int | None
    finished_at: int | None
    status: str
    origin: str
    model: str
    suffix: str
    seed: int
    training_file: str | None
    validation_file: str | None
    method: dict[str, Any]
    metadata: dict[str, str]
    config: dict[str, Any]
    trained_tokens: int | None
    result: str | None
    error: dict[str, Any] | None
    progress: dict[str, Any] | None = field(default=None, compare=False)


class Jobs:
    """The jobs of a service. For any number of threads.

    on_done: called with each job that ended, on the thread that runs them. trouble: why none is begun for now, in a
    sentence, or "". governor: its latest decisions, {at, action, cause}, the newest first.
    """

    def __init__(self, service: Service) -> None:
        self.service, self.store = service, service.store
        self.folder = service.config.folder() / FOLDER
        self.on_done: list[Callable[[Job], None]] = []
        self.changed = threading.Condition()  # held to change a status
        disk.private_folder(self.folder)
        self._remove_ended()
        self._work = Work(self)

    def start(self) -> None:
        self._work.start()

    def stop(self) -> None:
        """Save what is trained, and return when that is done."""
        self._work.stop()

    def _remove_ended(self) -> None:
        """Folders that a job left when the daemon was killed before it could remove them, or wrote them whole."""
        open_ones = {row["id"] for row in self.store.read("SELECT id FROM jobs WHERE finished_at IS NULL")}
        for path in self.folder.iterdir():
            if path.name not in open_ones:
                shutil.rmtree(path)

    # ---- asked for ----------------------------------------------------------------------------------------------

    def create(self, model: str, training_file: str, *, validation_file: str | None = None, suffix: str = "",
               seed: int | None = None, method: Mapping[str, Any] | None = None,
               hyperparameters: Mapping[str, Any] | None = None, metadata: Mapping[str, str] | None = None) -> Job:
        """A job over uploaded rows. model: the base or an adapter, whose options are then taken where none are asked
        for; training begins from the base.

        Raises NotFoundError for a model or file, UsageError for options, UnsupportedError for a method, DataError for
        too few rows, TooMuchError for too many jobs, DiskError.
        """
        held = Rows(self.service.files.content(validation_file)) if validation_file is not None else None
        rows = Rows(self.service.files.content(training_file))
        return self._add(rows, held, model=model, suffix=suffix, seed=seed, origin="api",
                         method=recipe.method_of(method, hyperparameters), metadata=dict(metadata or {}),
                         training_file=training_file, validation_file=validation_file)

    def create_from_rows(self, rows: Iterable[Row], held: Iterable[Row] | None = None, *, model: str = "",
                         suffix: str = "", seed: int | None = None, hyperparameters: Mapping[str, Any] | None = None,
                         metadata: Mapping[str, str] | None = None, origin: str = "api") -> Job:
        """A job over rows of a program's own; both are gone through twice. held: rows to judge by; None: a part.
        origin: learn, if they are feedback.
        """
        return self._add(rows, held, model=model or self.service.name, suffix=suffix, seed=seed, origin=origin,
                         method=recipe.method_of(None, hyperparameters), metadata=dict(metadata or {}),
                         training_file=None, validation_file=None)

    def _add(self, rows: Iterable[Row], held: Iterable[Row] | None, *, model: str, suffix: str, seed: int | None,
             method: dict[str, Any], **columns: Any) -> Job:
        if not all(letter.isascii() and (letter.isalnum() or letter in "._-") for letter in suffix):
            raise UsageError(f"suffix is {suffix!r:.60}", "use letters, digits, dots, dashes and underscores")
        if len(suffix) > SUFFIX:
            raise UsageError(f"suffix has {len(suffix)} letters", f"use {SUFFIX} at most")
        base, said = self._base_options(model)
        asked = {**method[method["type"]]["hyperparameters"], **({} if seed is None else {"seed": seed})}
        config = recipe.options(base, asked)
        if self._count_unfinished() >= UNFINISHED:
            raise TooMuchError(f"{UNFINISHED} jobs are not finished", "wait for some or cancel them")
        id = f"ftjob-{secrets.token_hex(12)}"
        with disk.new_folder(self.folder / id) as beside:
            sides = recipe.divide(rows, held, beside)
        row = {"id": id, "created_at": now(), "status": "queued", "model": model, "suffix": suffix,
               "seed": config.seed, "method": dump(method), "config": dump(config.to_json()),
               **columns, "metadata": dump(columns["metadata"])}
        try:
            with self.store.write() as db:
                db.execute(f"INSERT INTO jobs ({', '.join(row)}) VALUES ({', '.join(f':{name}' for name in row)})", row)
                for text, data in ((f"created with {sides['train']['rows']} rows to learn, {sides['held_out']['rows']} "
                                    "held out", {"rows": sides, "config": config.to_json()}), *said):
                    add_event(db, id, "info", "message", text, data)
        except BaseException:
            shutil.rmtree(self.folder / id, ignore_errors=True)
            raise
        with self.changed:
            self.changed.notify_all()
        return self.get(id)

    def _base_options(self, model: str) -> tuple[TrainConfig, list[tuple[str, None]]]:
        """What a job's request leaves open, by the model that it names, and what there is to say about it."""
        found = self.service.adapter_for(model)
        if found is None:
            return self.service.train, []
        run = json.loads((self.service.adapters.path(found) / lora.RUN).read_text())
        return TrainConfig(**{**run["options"], "memory": ""}), [(
            f"takes the options of {found} where none are given; training begins from the base", None)]

    def _count_unfinished(self) -> int:
        return int(self.store.read("SELECT count(*) FROM jobs WHERE finished_at IS NULL")[0][0])

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

    def get(self, id: str) -> Job:
        """Raises NotFoundError."""
        if found := self.store.read("SELECT * FROM jobs WHERE id = ?", id):
            return self._read(found[0])
        raise NotFoundError(f"there is no job {id!r:.80}", "GET /v1/fine_tuning/jobs lists those that are there")

    def list(self, after: str | None = None, limit: int = 100) -> Sequence[Job]:
        """The newest first, at most `limit` of them, those older than the job `after`."""
        return [self._read(row) for row in self.store.read(
            "SELECT * FROM jobs WHERE rowid < ? ORDER BY rowid DESC LIMIT ?", self.store.before("jobs", after), limit)]

    def _read(self, row: sqlite3.Row) -> Job:
        columns = dict(row)
        for name in ("method", "metadata", "config", "error"):
            columns[name] = json.loads(columns[name]) if columns[name] else None
        return Job(**columns, progress=self._work.progress_of(columns["id"]))

    def events(self, id: str, after: str | None = None, limit: int = 20) -> Sequence[dict[str, Any]]:
        """What happened to a job, the latest first, as OpenAI has it: id, created_at, level, type, message, data.

        Of type metrics are the lines of a run's metrics.jsonl, in data. Raises NotFoundError.
        """
        return [{"id": f"ftevent-{row['seq']}", "created_at": row["created_at"], "level": row["level"],
                 "type": row["type"], "message": row["message"], "data": json.loads(row["data"])}
                for row in self._rows_of("events", id, "ftevent-", after, limit)]

    def checkpoints(self, id: str, after: str | None = None, limit: int = 10) -> Sequence[dict[str, Any]]:
        """Measurements of the held-out loss, the latest first, in OpenAI's words. Raises NotFoundError."""
        model = self.get(id).result or ""
        return [{"id": f"ftckpt-{row['seq']}", "created_at": row["created_at"], "fine_tuning_job_id": id,
                 "fine_tuned_model_checkpoint": model, "step_number": row["step"],
                 "metrics": json.loads(row["metrics"])}
                for row in self._rows_of("checkpoints", id, "ftckpt-", after, limit)]

    def _rows_of(self, table: str, job: str, prefix: str, after: str | None, limit: int) -> Sequence[sqlite3.Row]:
        self.get(job)
        number = (after or f"{prefix}{2**62}").removeprefix(prefix)
        if not (number.isascii() and number.isdigit() and len(number) < 20):
            raise NotFoundError(f"there is no {after!r:.80} to go on after", "give the id of the last one that you got")
        return self.store.read(f"SELECT * FROM {table} WHERE job = ? AND seq < ? ORDER BY seq DESC LIMIT ?", job,
                               int(number), limit)

    def wait(self, id: str, timeout: float | None = None) -> Job:
        """The job when it has ended, or after so many seconds as it then is. Raises NotFoundError."""
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
            self.set(id, status, f"{status} as asked" if status != "queued" else "in line again")
            if self._work.job == id:
                self._work.leave(at_once=status == "cancelled")
            elif status == "cancelled":
                self.forget(id)
        return self.get(id)

    def set(self, id: str, status: str, text: str, level: str = "info", data: Any = None, **columns: Any) -> None:
        """Change a job and say so in its events; `changed` must be held."""
        columns = {"status": status, **columns, **({"finished_at": now()} if status in ENDED else {})}
        with self.store.write() as db:
            db.execute(f"UPDATE jobs SET {', '.join(f'{name} = :{name}' for name in columns)} WHERE id = :id",
                       {**columns, "id": id})
            add_event(db, id, level, "message", text, data)
        self.changed.notify_all()

    def forget(self, id: str) -> None:
        """Remove the rows and the run of a job that has ended, and tell who wants to know."""
        shutil.rmtree(self.folder / id, ignore_errors=True)  # else the next start does it
        for call in self.on_done:
            try:
                call(self.get(id))
            except Exception:  # theirs; jobs must go on
                log.exception("after job %s", id)

