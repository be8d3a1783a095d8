"""Tables of jobs in the database: rows, events and checkpoints. They are independent of how jobs run."""

from __future__ import annotations

import json
import logging
import sqlite3
import threading
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

from ...errors import FormatError, NotFoundError
from ...persisted import from_json
from ...training.config import TrainConfig
from ..kinds.registry import kind_of
from ..state.database import Store, add_event, dump, now

log = logging.getLogger("edgetune.daemon")
ENDED = ("succeeded", "failed", "cancelled")
LEVELS = {"info": logging.INFO, "warn": logging.WARNING, "error": logging.ERROR}
KEPT = 200  # jobs that have ended
OLD = """SELECT id FROM (SELECT id FROM jobs WHERE finished_at IS NOT NULL
                         ORDER BY finished_at DESC, rowid DESC LIMIT -1 OFFSET ?)
         WHERE id IS NOT ? AND id NOT IN (SELECT job FROM adapters)
         AND id NOT IN (SELECT job FROM feedback WHERE state = 'new' AND job IS NOT NULL)"""
Note = tuple[str, Any]  # a sentence and its data
Take = Callable[[sqlite3.Connection, str], object]  # assigns something to the job of an id, within a transaction


@dataclass(frozen=True)
class Job:
    """A row of the table with its JSON parsed; config has every option of TrainConfig. status: a paused job is pausing
    until it is saved, which is in no row. origin: the name of its kind. verdict: the gate's, without the scores of
    rows. rounds: the result of each round, as its kind reports it. progress, while it runs and as far as known: phase,
    step, steps, loss, held_out_loss, reward and held_out_reward where it learns from rewards, tokens_per_s (of the last
    step), eta_s, rows that the gate answers, and fields of its kind. result_files: ids, of a job that has ended.
    report: a file of HTML with the adapter that it made.
    """

    id: str
    created_at: int
    started_at: int | None
    finished_at: int | None
    status: Literal["queued", "running", "pausing", "paused", "succeeded", "failed", "cancelled"]
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
    verdict: dict[str, Any] | None = None
    rounds: list[dict[str, Any]] | None = None
    progress: dict[str, Any] | None = field(default=None, compare=False)
    result_files: Sequence[str] = field(default=(), compare=False)
    report: Path | None = field(default=None, compare=False)


@dataclass(frozen=True)
class _Error:
    code: str
    message: str
    param: str | None


@dataclass(frozen=True)
class _Event:
    """A row of events, data read."""

    seq: int
    job: str
    created_at: int
    level: Literal["info", "warn", "error"]
    type: Literal["message", "metrics"]
    message: str
    data: dict[str, Any] | None


@dataclass(frozen=True)
class _Checkpoint:
    """A row of checkpoints, metrics read."""

    seq: int
    job: str
    created_at: int
    step: int
    metrics: dict[str, Any]


class JobTable:
    """The tables of jobs, events and checkpoints. For any number of threads; `changed` is held to change a status."""

    def __init__(self, store: Store) -> None:
        self.store = store
        self.changed = threading.Condition()

    def get(self, id: str) -> Job:
        """Returns a job. Raises NotFoundError."""
        return self.store.one("jobs", self.store.read("SELECT * FROM jobs WHERE id = ?", id), _job, NotFoundError(
            f"there is no job {id!r:.80}", "list the jobs to see those that exist"))

    def list(self, after: str | None, limit: int) -> Sequence[Job]:
        """Returns jobs, the newest first, at most `limit` of them, those older than the job `after`."""
        return self.store.newest("jobs", _job, self.store.before("jobs", after), limit)

    def next(self) -> str | None:
        """Returns the next job: one that was begun, else the one that waits longest."""
        found = self.store.read("SELECT id FROM jobs WHERE status IN ('running', 'queued') "
                                "ORDER BY status = 'queued', rowid LIMIT 1")
        return str(found[0]["id"]) if found else None

    def paused_by_itself(self) -> Sequence[tuple[str, str]]:
        """Returns jobs that no person has paused, and why they are paused."""
        found = self.store.read("SELECT jobs.id, level, message, max(seq) FROM jobs JOIN events ON job = jobs.id "
                                "WHERE status = 'paused' AND type = 'message' GROUP BY jobs.id")
        return [(row["id"], row["message"]) for row in found if row["level"] == "warn"]

    def ids(self, ended: bool) -> set[str]:
        is_ended = "finished_at IS NOT NULL" if ended else "finished_at IS NULL"
        return {row["id"] for row in self.store.read(f"SELECT id FROM jobs WHERE {is_ended}")}

    def activated_since(self, origin: str, mark: str) -> int:
        """Returns how many jobs of an origin passed the gate since the latest with this mark in its metadata."""
        return int(self.store.read(
            "SELECT count(*) FROM jobs WHERE origin = ? AND json_valid(verdict) "
            "AND json_extract(verdict, '$.passed') AND rowid > coalesce((SELECT max(rowid) FROM jobs "
            "WHERE json_valid(metadata) AND json_extract(metadata, ?) IS NOT NULL), 0)", origin, f"$.{mark}")[0][0])

    def tests_before(self) -> int:
        """Returns the number of adapters that the gate has refused since it let one pass and become active."""
        found = self.store.read("SELECT verdict FROM jobs WHERE json_valid(verdict) AND json_extract(verdict, "
                                "'$.test') ORDER BY finished_at DESC, rowid DESC LIMIT 1")
        verdict = json.loads(found[0]["verdict"]) if found else {"passed": True}
        return 0 if verdict.get("published", verdict["passed"]) else int(verdict["test"])

    def latest_rounds(self, origin: str) -> Sequence[dict[str, Any]]:
        """Returns the rounds of the latest job of an origin."""
        return self._rounds("origin = ?", origin)

    def rounds(self, id: str) -> Sequence[dict[str, Any]]:
        """Returns the rounds of a job, even if another column of its row is damaged."""
        return self._rounds("id = ?", id)

    def _rounds(self, where: str, value: str) -> Sequence[dict[str, Any]]:
        found = self.store.read(f"SELECT rounds FROM jobs WHERE {where} AND json_valid(rounds) "
                                "ORDER BY rowid DESC LIMIT 1", value)
        return list(json.loads(found[0]["rounds"])) if found else []

    def set_rounds(self, id: str, rounds: Sequence[Mapping[str, Any]]) -> None:
        with self.store.write() as db:
            db.execute("UPDATE jobs SET rounds = ? WHERE id = ?", (dump(rounds), id))

    def unfinished(self, origin: str) -> str | None:
        """Returns a job of this origin that has not ended."""
        found = self.store.read("SELECT id FROM jobs WHERE origin = ? AND finished_at IS NULL", origin)
        return str(found[0]["id"]) if found else None

    def events(self, id: str, after: str | None, limit: int) -> Sequence[dict[str, Any]]:
        """Returns events, the latest first, as OpenAI has them."""
        return self._of_job("events", _event, id, "ftevent-", after, limit)

    def checkpoints(self, id: str, after: str | None, limit: int) -> Sequence[dict[str, Any]]:
        """Returns measurements of the held-out loss, the latest first, in OpenAI's words."""
        model = self.get(id).result or ""
        found = self._of_job("checkpoints", _checkpoint, id, "ftckpt-", after, limit)
        return [{**checkpoint, "fine_tuned_model_checkpoint": model} for checkpoint in found]

    def _of_job(self, table: str, read: Any, job: str, prefix: str, after: str | None,
                limit: int) -> Sequence[dict[str, Any]]:
        self.get(job)
        number = (after or f"{prefix}{2**62}").removeprefix(prefix)
        if not (number.isascii() and number.isdigit() and len(number) < 20):
            raise NotFoundError(f"there is no {after!r:.80} after which to continue",
                                "give the id of the last one that you got")
        return self.store.newest(table, read, int(number), limit, "job = ?", job)

    def insert(self, columns: Mapping[str, Any], notes: Iterable[Note], take: Take | None = None) -> None:
        """Inserts a new job with what it takes, and the first events of its history: all of it or nothing."""
        names = ", ".join(columns)
        values = ", ".join(f":{name}" for name in columns)
        with self.store.write() as db:
            db.execute(f"INSERT INTO jobs ({names}) VALUES ({values})", dict(columns))
            for text, data in notes:
                add_event(db, columns["id"], "info", "message", text, data)
            if take:
                take(db, columns["id"])
        for text, _ in notes:
            log.info("%s: %s", columns["id"], text)
        self.changed.notify_all()

    def set(self, id: str, status: str, text: str, level: str = "info", data: Any = None, **columns: Any) -> None:
        """Changes a job, and records it in its events and the log; `changed` must be held."""
        columns["status"] = status
        if status in ENDED:
            columns["finished_at"] = now()
        changes = ", ".join(f"{name} = :{name}" for name in columns)
        with self.store.write() as db:
            db.execute(f"UPDATE jobs SET {changes} WHERE id = :id", {**columns, "id": id})
            add_event(db, id, level, "message", text, data)
        log.log(LEVELS[level], "%s: %s", id, text)
        self.changed.notify_all()

    def remove_old(self, running: str | None) -> None:
        """Removes ended jobs, but the latest KEPT, those with adapters, and those with unsettled feedback."""
        with self.store.write() as db:
            old = db.execute(OLD, (KEPT, running)).fetchall()
            for table, column in (("events", "job"), ("checkpoints", "job"), ("jobs", "id")):
                db.executemany(f"DELETE FROM {table} WHERE {column} = ?", [(row["id"],) for row in old])

    def add_events(self, id: str, events: Iterable[tuple[str, str, str, Any]]) -> None:
        """Adds lines of a job's history, (level, type, message, data) each; held-out losses become checkpoints too."""
        with self.store.write() as db:
            for level, kind, text, data in events:
                add_event(db, id, level, kind, text, data)
                if data and data.get("event") == "eval":
                    db.execute("INSERT INTO checkpoints (job, created_at, step, metrics) VALUES (?, ?, ?, ?)",
                               (id, now(), data["step"], dump(_openai_metrics(data))))


def _job(columns: dict[str, Any]) -> Job:
    for name in ("method", "metadata", "config", "error", "verdict", "rounds"):
        columns[name] = json.loads(columns[name]) if columns[name] else None
    columns["config"] = from_json(TrainConfig, columns["config"], "its config").to_json()
    if columns["error"] is not None:
        columns["error"] = asdict(from_json(_Error, columns["error"], "its error"))
    job = from_json(Job, columns, "the row")
    kind_of(job.origin)
    if not all(isinstance(value, str) for value in job.metadata.values()):
        raise FormatError("its metadata holds other values than text")
    return job


def _event(columns: dict[str, Any]) -> dict[str, Any]:
    columns["data"] = json.loads(columns["data"])
    event = asdict(from_json(_Event, columns, "the row"))
    del event["job"]
    return {"id": f"ftevent-{event.pop('seq')}", **event}


def _checkpoint(columns: dict[str, Any]) -> dict[str, Any]:
    columns["metrics"] = json.loads(columns["metrics"])
    row = from_json(_Checkpoint, columns, "the row")
    return {"id": f"ftckpt-{row.seq}", "created_at": row.created_at, "fine_tuning_job_id": row.job,
            "step_number": row.step, "metrics": row.metrics}


def _openai_metrics(event: Mapping[str, Any]) -> dict[str, Any]:
    """Returns a checkpoint's metrics, by the names of progress.py. best: the loss, or mean reward, to keep."""
    names = ("step", "valid_loss", "full_valid_loss", "full_valid_mean_reward", "best")
    found = {name: event[name] for name in names if name in event}
    if "full_valid_mean_reward" in found and found["best"] is not None:
        found["best"] = -found["best"]  # a run minimizes
    return found
