"""Every adapter that the daemon keeps, which one is in service, and the way back.

An adapter is never changed after it is written: promoting and rolling back only say which one answers from now on. A
request that is being answered ends on the adapter that it began with.
"""

from __future__ import annotations

import json
import secrets
import shutil
import sqlite3
import threading
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .. import adapter as lora
from .. import disk
from ..batching import Batcher
from ..bundle import sha256
from ..errors import FormatError, NotFoundError, UnsupportedError, UsageError
from ..metrics import NAME as METRICS
from .options import DaemonConfig
from .store import Store, dump, now

FOLDER = "adapters"
SELECT = """SELECT *, id IN (SELECT adapter FROM service) AS served,
            id IS (SELECT adapter FROM service ORDER BY seq DESC LIMIT 1) AS serving FROM adapters"""


@dataclass(frozen=True)
class Adapter:
    """id: ft:MODEL:SUFFIX:xxxxxxxx, what clients name it. folder: in STATE/adapters. sha256: of its adapter.gguf.
    verdict: what the gate found. state: serving, candidate (it never served) or retired.
    """

    id: str
    folder: str
    job: str
    created_at: int
    sha256: str
    verdict: dict[str, Any]
    state: str


class Adapters:
    """The adapters below `folder`, all of them loaded in `batcher`. name: the model's. For any number of threads.

    `damaged` has a sentence for each that could not be loaded at the start: it is not listed, and does not answer.
    """

    def __init__(self, store: Store, folder: Path, batcher: Batcher, config: DaemonConfig, name: str) -> None:
        self.store, self.folder, self.batcher = store, folder / FOLDER, batcher
        self.keep, self.name = config.keep, name
        self.damaged: dict[str, str] = {}
        self._changing = threading.RLock()
        disk.private_folder(self.folder)

    def start(self) -> None:
        """Remove what was not finished, and load the others. Raises MismatchError where they belong to another model.

        If the one in service is damaged, the one before it takes over.
        """
        rows = self.store.read("SELECT id, folder FROM adapters ORDER BY rowid")
        for path in self.folder.iterdir():
            if path.name not in {row["folder"] for row in rows}:
                shutil.rmtree(path)
        for row in rows:
            try:
                self.batcher.load(row["id"], self.folder / row["folder"])
            except (FormatError, UnsupportedError) as error:
                self.damaged[row["id"]] = error.what
        while (serving := self.serving) in self.damaged:
            self.rollback(f"{serving} cannot be loaded: {self.damaged[str(serving)]}")

    # ---- what there is ------------------------------------------------------------------------------------------

    def ids(self) -> Sequence[str]:
        """Of those that can answer, the newest first."""
        return [row["id"] for row in self.store.read("SELECT id FROM adapters ORDER BY rowid DESC")
                if row["id"] not in self.damaged]

    def list(self) -> Sequence[Adapter]:
        """The newest first."""
        return [_adapter(row) for row in self.store.read(f"{SELECT} ORDER BY rowid DESC")
                if row["id"] not in self.damaged]

    def get(self, id: str) -> Adapter:
        """Raises NotFoundError."""
        if (rows := self.store.read(f"{SELECT} WHERE id = ?", id)) and id not in self.damaged:
            return _adapter(rows[0])
        raise _unknown(id)

    def path(self, id: str) -> Path:
        """The folder of adapter.gguf, run.json and metrics.jsonl. Raises NotFoundError."""
        if rows := self.store.read("SELECT folder FROM adapters WHERE id = ?", id):
            return self.folder / str(rows[0]["folder"])
        raise _unknown(id)

    @property
    def serving(self) -> str | None:
        """The id of the one in service; None: the base alone."""
        rows = self.store.read("SELECT adapter FROM service ORDER BY seq DESC LIMIT 1")
        return rows[0]["adapter"] if rows else None

    def history(self, limit: int = 100) -> Sequence[dict[str, Any]]:
        """What came into service when and why, the newest first; adapter: an id, None for the base alone."""
        return [dict(row) for row in self.store.read(
            "SELECT at, adapter, cause FROM service ORDER BY seq DESC LIMIT ?", limit)]

    # ---- what changes -------------------------------------------------------------------------------------------

    def add(self, job: str, run_folder: Path, suffix: str, verdict: Mapping[str, Any]) -> Adapter:
        """Keep the adapter of a finished run, as a candidate. The second time for a job it returns the first's."""
        if rows := self.store.read("SELECT id FROM adapters WHERE job = ?", job):
            return self.get(rows[0]["id"])
        folder = secrets.token_hex(4)
        id, path = f"ft:{self.name}:{suffix}:{folder}", self.folder / folder
        with disk.new_folder(path) as beside:
            for name in (lora.FILE, lora.RUN, METRICS):
                shutil.copyfile(run_folder / name, beside / name)
        try:
            self.batcher.load(id, path)
            with self.store.write() as db:
                db.execute("INSERT INTO adapters VALUES (?, ?, ?, ?, ?, ?)",
                           (id, folder, job, now(), sha256(path / lora.FILE), dump(verdict)))
        except BaseException:
            shutil.rmtree(path, ignore_errors=True)
            raise
        return self.get(id)

    def promote(self, id: str | None, cause: str) -> None:
        """Answer with this adapter from the next request on; None: with the base alone. Raises NotFoundError."""
        with self._changing:
            if id is not None:
                self.get(id)
            if id != self.serving:
                with self.store.write() as db:
                    db.execute("INSERT INTO service (at, adapter, cause) VALUES (?, ?, ?)", (now(), id, cause))

    def rollback(self, cause: str) -> Adapter | None:
        """Answer with what was in service before, and return it; None: the base alone. Raises UsageError where the
        base was in service from the beginning.
        """
        with self._changing:
            before = self._before()
            if not before:
                raise UsageError("nothing was in service before", "promote an adapter by its id")
            self.promote(before[-1], cause)
            return self.get(before[-1]) if before[-1] else None

    def delete(self, id: str) -> None:
        """Remove an adapter, after its last answer. Raises NotFoundError, and UsageError for the one in service."""
        folder = self.path(id)
        with self._changing:
            if id == self.serving:
                raise UsageError(f"the adapter {id} is in service", "promote another one or roll back before")
            with self.store.write() as db:
                db.execute("DELETE FROM adapters WHERE id = ?", (id,))
        if self.damaged.pop(id, None) is None:
            self.batcher.unload(id)
        shutil.rmtree(folder, ignore_errors=True)  # else the next start does it

    def prune(self) -> None:
        """Delete all but the one in service and `keep` others: what a rollback leads to, and the newest."""
        back = set(self._before()[-1:])
        others = [found.id for found in self.list() if found.state != "serving"]
        for id in sorted(others, key=lambda id: id not in back)[self.keep:]:
            with suppress(NotFoundError, UsageError):  # somebody was quicker
                self.delete(id)

    def _before(self) -> Sequence[str | None]:
        """What a rollback leads to, the last first to go: what was promoted, less what was rolled back.

        An adapter that is in service again stands where it stood before.
        """
        there = {None, *(row["id"] for row in self.store.read("SELECT id FROM adapters"))} - set(self.damaged)
        stack: list[str | None] = [None]
        for row in self.store.read("SELECT adapter FROM service ORDER BY seq"):
            id = row["adapter"]
            if id in stack:
                del stack[stack.index(id):]
            stack.append(id)
        return [id for id in stack[:-1] if id in there]


def _adapter(row: sqlite3.Row) -> Adapter:
    columns = dict(row)
    serving, served = columns.pop("serving"), columns.pop("served")
    return Adapter(**{**columns, "verdict": json.loads(row["verdict"])},
                   state="serving" if serving else "retired" if served else "candidate")


def _unknown(id: str) -> NotFoundError:
    return NotFoundError(f"there is no adapter {id!r:.80}", "GET /v1/adapters lists those that are there")
