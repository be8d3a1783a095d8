"""Adapters that the daemon keeps, the active one among them, and rollbacks.

An adapter is never changed after it is written: promoting and rolling back only change the active one. A request that
is being answered ends on the adapter that it began with.
"""

from __future__ import annotations

import json
import logging
import re
import secrets
import shutil
import threading
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from ... import disk
from ...adapters import store as lora
from ...errors import BudgetError, EdgetuneError, FormatError, NotFoundError, UnsupportedError, UsageError, size_text
from ...formats.bundle import sha256
from ...persisted import from_json
from ...serving.answering import Answering
from ...training.metrics import CSV, REPORT
from ...training.metrics import NAME as METRICS
from ..options import DaemonConfig
from .bases import settle
from .database import Store, dump, now
from .shelf import Shelf

log = logging.getLogger("edgetune.daemon")
FOLDER = "adapters"
NAMES = r"[0-9a-f]{8}"
RECORD = "daemon.json"  # in an adapter's folder: a copy of its row, for when the database is lost
LATEST = ":latest"
FOREIGN = "a client added it; no gate has evaluated it"
_PEOPLES_NAME = re.compile(r"[^\W_][\w. -]{0,63}")
ACTIVE = "SELECT adapter FROM service WHERE base = ?1 ORDER BY seq DESC LIMIT 1"
SELECT = f"""SELECT *, id IN (SELECT adapter FROM service) AS served, id IS ({ACTIVE}) AS serving FROM adapters
             WHERE base = ?1"""


@dataclass(frozen=True)
class RegisteredAdapter:
    """An adapter. id: ft:MODEL:SUFFIX:xxxxxxxx, its name for clients. name: its name for people, which requests may use
    like its id; "": none. folder: in STATE/adapters. job: that made it; "": none. sha256: of its adapter.gguf. verdict:
    the gate's. base: the fingerprint of its model. state: serving, candidate (it was never active) or retired.
    """

    id: str
    folder: str
    job: str
    created_at: int
    sha256: str
    verdict: dict[str, Any]
    name: str
    base: str
    state: str


@dataclass(frozen=True)
class AdapterRecord:
    """The content of RECORD; fields as in RegisteredAdapter."""

    id: str
    job: str
    created_at: int
    verdict: dict[str, Any]
    name: str = ""


@dataclass(frozen=True)
class _Switch:
    """A row of the table `service`."""

    seq: int
    at: int
    adapter: str | None
    cause: str
    base: str


class Adapters:
    """The adapters below `folder`, all loaded in `batcher`, for any number of threads. name, base: of the model, a name
    and its fingerprint. left: bytes of memory that the daemon may still take. may_differ: as of bases.settle.

    Those of other bases, which the state had before, stay on disk: they are not listed, and none answers until their
    base is back.

    needed: functions of an id that say whether a part needs the adapter, which is not pruned then.

    `damaged` has a sentence for each that could not be loaded at the start: it is not listed, and does not answer.
    """

    def __init__(self, store: Store, folder: Path, batcher: Answering[Any], config: DaemonConfig, name: str,
                 left: Callable[[], int], base: str, may_differ: bool = False) -> None:
        self.store = store
        self.needed: list[Callable[[str], bool]] = []
        self.base = base
        self._may_differ = may_differ
        self._left = left
        self.batcher = batcher
        self.keep = config.keep
        self.name = name
        self.damaged: dict[str, str] = {}
        self._missing = ""  # a sentence, where the active adapter could not answer at the start
        self._changing = threading.RLock()
        self._shelf = Shelf(folder, FOLDER, NAMES)
        self.folder = self._shelf.folder

    def start(self) -> None:
        """Loads all adapters, and activates the one before a damaged one. Raises MismatchError where the state is one
        of another model, TooMuchError where the system has no room to open one.
        """
        self._shelf.tidy({row["folder"] for row in self.store.read("SELECT folder FROM adapters")})
        settle(self.store, self.folder, self.base, self._may_differ)
        for found in reversed(self.list()):
            try:
                self.batcher.load(found.id, self._whole(found))
            except (FormatError, UnsupportedError) as error:
                if refusal := disk.refusal(error):  # a later start finds it whole
                    raise refusal from None
                self.damaged[found.id] = error.what
        while (serving := self.serving) is not None and serving not in self.ids():
            why = self.damaged.get(serving, "its row in the database is gone or damaged")
            before = self.rollback(f"{serving} cannot be loaded: {why}")
            instead = before.id if before else "the base"
            self._missing = (f"{serving}, which was active, cannot be loaded: {instead} answers instead; promote "
                             "another adapter")

    def _place(self, folder: str) -> Path:
        """Returns an adapter's path. Raises FormatError for a folder that is not ours, or a link."""
        if (path := self._shelf.path(folder)).is_symlink():
            raise FormatError(f"{path} is a link", "remove it")
        return path

    def _whole(self, found: RegisteredAdapter) -> Path:
        """Returns an adapter's folder. Raises FormatError where adapter.gguf does not match its row."""
        path = self._place(found.folder)
        if (file := path / lora.FILE).is_file() and sha256(file) != found.sha256:
            raise FormatError(f"{file} of {found.id} is damaged: its SHA-256 is not that of its row",
                              "restore it from a copy, or delete the adapter")
        return path

    # ---- looking up ---------------------------------------------------------------------------------------------

    def ids(self) -> Sequence[str]:
        """Returns ids of adapters that can answer, the newest first."""
        loaded = set(self.batcher.served.adapters())
        return [row["id"] for row in self.store.read("SELECT id FROM adapters ORDER BY rowid DESC")
                if row["id"] in loaded]

    def list(self) -> Sequence[RegisteredAdapter]:
        """Returns adapters, the newest first."""
        rows = self.store.read(f"{SELECT} ORDER BY rowid DESC", self.base)
        return [found for found in self.store.objects("adapters", rows, self._read) if found.id not in self.damaged]

    def get(self, id: str) -> RegisteredAdapter:
        """Returns an adapter. Raises NotFoundError."""
        if id in self.damaged:
            raise _unknown(id)
        rows = self.store.read(f"{SELECT} AND id = ?2", self.base, id)
        return self.store.one("adapters", rows, self._read, _unknown(id))

    def _read(self, columns: dict[str, Any]) -> RegisteredAdapter:
        serving = columns.pop("serving")
        served = columns.pop("served")
        columns["verdict"] = json.loads(columns["verdict"])
        columns["state"] = "serving" if serving else "retired" if served else "candidate"
        found = from_json(RegisteredAdapter, columns, "the row")
        self._shelf.path(found.folder)
        return found

    def path(self, id: str) -> Path:
        """Returns the folder of adapter.gguf, run.json, metrics.jsonl and the report. Raises NotFoundError."""
        return self._place(self.get(id).folder)

    def of_job(self, job: str) -> RegisteredAdapter | None:
        """Returns the adapter that a job made."""
        rows = self.store.read("SELECT id FROM adapters WHERE job = ? AND base = ?", job, self.base)
        return self.get(rows[0]["id"]) if rows else None

    def report_of(self, job: str) -> Path | None:
        """Returns the file of HTML on the training of an adapter; None where there is none."""
        for row in self.store.read("SELECT folder FROM adapters WHERE job = ?", job):
            with suppress(FormatError):
                path = self._place(row["folder"]) / REPORT
                return path if path.is_file() else None
        return None

    def reasons(self) -> Sequence[str]:
        """Returns the reasons why the daemon is degraded, a sentence each."""
        return [*self.damaged.values(), *([self._missing] if self._missing else [])]

    # ---- which one answers --------------------------------------------------------------------------------------

    def models(self) -> Sequence[str]:
        """Returns names for requests: the base, the base with the active adapter, and every adapter, also by its name.
        """
        ids = self.ids()
        names = {found.id: found.name for found in self.list() if found.name}
        return [self.name, self.name + LATEST, *ids, *(names[id] for id in ids if id in names)]

    def named(self, model: str) -> str | None:
        """Returns the adapter that answers for a model's name now; None: the base alone. Raises NotFoundError."""
        if model == self.name:
            return None
        if model in (self.name + LATEST, ""):
            return self.serving
        if (id := self.id_of(model)) in self.ids():
            return id
        raise NotFoundError(f"there is no model {model!r:.200}", f"there are {', '.join(self.models()[:8])}")

    def id_of(self, name: str) -> str:
        """Returns the id of the adapter with this name; any other name, an id for instance, is returned unchanged."""
        rows = self.store.read("SELECT id FROM adapters WHERE name = ? AND name != '' AND base = ?", name, self.base)
        return str(rows[0]["id"]) if rows else name

    @property
    def serving(self) -> str | None:
        """Returns the id of the active adapter; None: the base alone."""
        rows = self.store.read(ACTIVE, self.base)
        return rows[0]["adapter"] if rows else None

    def history(self, limit: int = 100) -> Sequence[dict[str, Any]]:
        """Returns changes of the active adapter, the newest first; adapter: an id, None for the base."""
        found = self.store.newest("service", lambda columns: from_json(_Switch, columns, "the row"), 2**62, limit,
                                  "base = ?", self.base)
        return [{"at": switch.at, "adapter": switch.adapter, "cause": switch.cause} for switch in found]

    # ---- changing -----------------------------------------------------------------------------------------------

    def add(self, job: str, run_folder: Path, suffix: str, verdict: Mapping[str, Any]) -> RegisteredAdapter:
        """Keeps the adapter of a finished run, as a candidate. The second time for a job it returns the first's. Raises
        BudgetError where memory has no room for it.
        """
        return self.of_job(job) or self._keep(job, run_folder, suffix, verdict)

    def add_foreign(self, source: Path, suffix: str) -> RegisteredAdapter:
        """Keeps an adapter that no job made, as a candidate. source: its folder. Raises FormatError or UnsupportedError
        for one that cannot answer, MismatchError for one of another base, BudgetError where memory has no room for it.
        """
        return self._keep("", source, suffix, {"passed": False, "reason": FOREIGN})

    def _keep(self, job: str, source: Path, suffix: str, verdict: Mapping[str, Any]) -> RegisteredAdapter:
        needed = self.batcher.served.bytes_to_load(source)
        if (left := self._left()) < needed:
            raise BudgetError(f"the adapter takes {size_text(needed)} of memory, {size_text(max(left, 0))} are left",
                              "start the daemon with a larger --memory", needed)
        folder = secrets.token_hex(4)
        record = AdapterRecord(f"ft:{self.name}:{suffix}:{folder}", job, now(), dict(verdict))
        with self._shelf.filling(folder) as path:
            path.mkdir()
            for name in (lora.FILE, lora.RUN, METRICS, CSV, REPORT, lora.SCHEMA, *lora.PROMPT):
                if (source / name).exists():
                    shutil.copyfile(source / name, path / name)
            _write_record(path, record)
            disk.sync_whole(path)
            self._load_and_insert(record, folder, path)
        self._shelf.settle(folder)
        return self.get(record.id)

    def _load_and_insert(self, record: AdapterRecord, folder: str, path: Path) -> None:
        self.batcher.load(record.id, path)
        try:
            with self.store.write() as db:
                db.execute("INSERT INTO adapters VALUES (?, ?, ?, ?, ?, ?, ?, ?)", (
                    record.id, folder, record.job, record.created_at, sha256(path / lora.FILE), dump(record.verdict),
                    record.name, self.base))
        except BaseException:
            self.batcher.unload(record.id)
            raise

    def recover(self) -> tuple[Sequence[RegisteredAdapter], dict[str, str]]:
        """Takes back adapters that no row names. Returns them, and why others remain, by path. Raises DiskError."""
        found: list[RegisteredAdapter] = []
        refused: dict[str, str] = {}
        with self._changing:
            for path in sorted(self._shelf.lost.glob("*"), key=lambda path: path.stat().st_mtime):
                try:
                    found.append(self.get(self._take_back(path)))
                except (EdgetuneError, OSError) as error:
                    refused[str(path)] = str(error)
        return found, refused

    def _take_back(self, path: Path) -> str:
        """Takes back an adapter that was set aside, and returns its id."""
        folder = path.name.partition(".")[0]
        target = self._shelf.path(folder)
        record = self._record(path, folder)
        if self.store.read("SELECT 1 FROM adapters WHERE id = ? OR folder = ?", record.id, folder):
            raise UsageError(f"there is an adapter {record.id}", f"remove {path}")
        if record.name in self.models() or not _PEOPLES_NAME.fullmatch(record.name):
            record = replace(record, name="")  # another adapter may have this name now
        path.rename(target)
        try:
            self._load_and_insert(record, folder, target)
        except BaseException:
            target.rename(path)
            raise
        log.info("%s is taken back from %s", record.id, path)
        return record.id

    def _record(self, path: Path, folder: str) -> AdapterRecord:
        """Reads the record in an adapter's folder. Without one, of an earlier edgetune, it is made of the run."""
        if (file := path / RECORD).is_file():
            try:
                return from_json(AdapterRecord, json.loads(file.read_text()), str(file))
            except (ValueError, RecursionError) as error:
                raise FormatError(f"{file} is damaged: {error}", "remove it to do without it") from None
        verdict = {"passed": False, "reason": "taken back after the database was lost; the gate's verdict is not known"}
        return AdapterRecord(f"ft:{self.name}::{folder}", "", int(path.stat().st_mtime), verdict)

    def promote(self, id: str | None, cause: str) -> None:
        """Lets this adapter answer from the next request on; None: the base alone. Raises NotFoundError."""
        with self._changing:
            if id != self.serving:
                log.info("%s is active: %s", id or "the base alone", cause)
            self._activate(id, cause)

    def _activate(self, id: str | None, cause: str) -> None:
        if id is not None:
            self.get(id)
        if id != self.serving:
            self.note(id, cause)
        self._missing = ""

    def note(self, id: str | None, cause: str) -> None:
        """Records that an adapter is active, None: the base alone."""
        with self.store.write() as db:
            db.execute("INSERT INTO service (at, adapter, cause, base) VALUES (?, ?, ?, ?)",
                       (now(), id, cause, self.base))

    def admit(self, id: str, cause: str, against: str | None) -> bool:
        """Promotes an adapter that is better than `against`, if that is still active; returns whether it did. The job
        that made the adapter says so in the log.
        """
        with self._changing:
            if self.serving != against:
                return False
            self._activate(id, cause)
            return True

    def rollback(self, cause: str, only: str | None = None) -> RegisteredAdapter | None:
        """Returns to the adapter active before, and returns it; None: the base. only: if that adapter is active.
        Raises UsageError without one before, and where another one is active.
        """
        with self._changing:
            if only is not None and only != self.serving:
                raise UsageError(f"{self.get(only).id} is not active", "roll back without a name, or promote another")
            before = self._before()
            if not before:
                raise UsageError("no adapter was active before", "promote an adapter by its id")
            self.promote(before[-1], cause)
            return self.get(before[-1]) if before[-1] else None

    def rename(self, id: str, name: str) -> RegisteredAdapter:
        """Gives an adapter a name for people, which requests may use like its id; "": none. Raises NotFoundError, and
        UsageError for a name that is taken or cannot be one; DiskError.
        """
        name = name.strip()
        if name and not _PEOPLES_NAME.fullmatch(name):
            raise UsageError(f"the name is {name!r:.80}", "take up to 64 letters, digits, spaces, dots, dashes and "
                             "underscores, a letter or digit first")
        with self._changing:
            found = self.get(id)
            if name and any(model == name and self.named(model) != id for model in self.models()):
                raise UsageError(f"there is a model {name!r} already", "choose another name")
            record = AdapterRecord(id, found.job, found.created_at, found.verdict, name)
            _write_record(self._place(found.folder), record)
            with self.store.write() as db:
                db.execute("UPDATE adapters SET name = ? WHERE id = ?", (name, id))
        return self.get(id)

    def set_verdict(self, id: str, verdict: Mapping[str, Any]) -> RegisteredAdapter:
        """Replaces the verdict of an adapter. Raises NotFoundError and DiskError."""
        with self._changing:
            found = self.get(id)
            record = AdapterRecord(id, found.job, found.created_at, dict(verdict), found.name)
            _write_record(self._place(found.folder), record)
            with self.store.write() as db:
                db.execute("UPDATE adapters SET verdict = ? WHERE id = ?", (dump(verdict), id))
        return self.get(id)

    def delete(self, id: str) -> None:
        """Removes an adapter, after its last answer. Raises NotFoundError, and UsageError for the active one."""
        def delete_row() -> None:
            with self.store.write() as db:
                db.execute("DELETE FROM adapters WHERE id = ?", (id,))

        with self._changing:
            rows = self.store.read("SELECT folder FROM adapters WHERE id = ?", id)
            if not rows:
                raise _unknown(id)
            if id == self.serving:
                raise UsageError(f"the adapter {id} is active", "promote another one or roll back before")
            self._shelf.remove(str(rows[0]["folder"]), delete_row)
            self.store.forget("adapters", id)
            self.store.wipe()  # its name
        if self.damaged.pop(id, None) is None and id in self.batcher.served.adapters():
            self.batcher.unload(id)

    def prune(self) -> None:
        """Deletes all adapters of jobs but the active one, those that are needed, and `keep` others: those that
        rollbacks lead to, and the newest.
        """
        back = set(self._before()[-1:])
        others = [found.id for found in self.list() if found.job and found.state != "serving"
                  and not any(is_needed(found.id) for is_needed in self.needed)]
        for id in sorted(others, key=lambda id: id not in back)[self.keep:]:
            with suppress(NotFoundError, UsageError):  # deleted or promoted meanwhile
                self.delete(id)

    def _before(self) -> Sequence[str | None]:
        """Returns the adapters that rollbacks lead to, the next one last: all promoted ones, less those that were
        rolled back.

        An adapter that is active again takes its earlier place.
        """
        known = {None, *self.ids()}
        stack: list[str | None] = [None]
        for row in self.store.read("SELECT adapter FROM service WHERE base = ? ORDER BY seq", self.base):
            id = row["adapter"]
            if id in stack:
                del stack[stack.index(id):]
            stack.append(id)
        return [id for id in stack[:-1] if id in known]


def _write_record(path: Path, record: AdapterRecord) -> None:
    """Writes the record into an adapter's folder. Raises DiskError."""
    with disk.replaced(path / RECORD) as beside:
        beside.write_text(json.dumps(asdict(record)) + "\n")


def _unknown(id: str) -> NotFoundError:
    return NotFoundError(f"there is no adapter {id!r:.80}", "list the adapters to see those that exist")
