"""A service on an engine that computes nothing, with processes of jobs that train nothing, and its accidents.

Its database, files, queue, gate's consequences and threads are real. Marks are words that occur nowhere else, and are
looked for in every file.
"""

from __future__ import annotations

import json
import re
import shutil
import tempfile
import time
from collections import defaultdict
from collections.abc import Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any
from unittest import mock

from fake_workers import FakeProcess, FakeWorkers
from kills import Kill, killed
from services import same_holdout
from slot_folders import write_slot
from stub_engine import StubAnswering, StubVectors
from tiny import write_tiny

from edgetune import TrainConfig
from edgetune.adapters import store as lora
from edgetune.daemon import memory, service
from edgetune.daemon.jobs.recipe import TRAIN
from edgetune.daemon.jobs.worker import RUN
from edgetune.daemon.options import DaemonConfig
from edgetune.daemon.service import Service
from edgetune.data.dataset import load_rows
from edgetune.formats.bundle import open_bundle, write_copy
from edgetune.formats.slot import SIDES, Slot
from edgetune.llamacpp.tokenizer import Tokenizer
from edgetune.machine.device import read_device
from edgetune.machine.policy import Policy
from edgetune.machine.sensors import Sensors
from edgetune.parts.documents.store_records import IN_PROGRESS
from edgetune.parts.documents.vector_stores import VectorStores
from edgetune.training.run import run

PATIENCE = 30.0  # seconds; nothing here takes nearly so long
LABELS = "labels"  # in run.json, as an encoder's training writes them
TRAINING = TrainConfig(lr=2e-2, epochs=1.0, batch_size=4, max_length=96, threads=1, anchors=0)


@dataclass(frozen=True)
class Template:
    """A slot with two bases, and the run of a training on each, by its side. Read only."""

    slot: Path
    runs: dict[str, Path]


@cache
def template() -> Template:
    """Made once a process, for a training takes a second."""
    folder = Path(tempfile.mkdtemp(prefix="machine-"))
    slot = write_slot(write_tiny(folder / "tiny.gguf", formats="Q8_0"), folder / "slot")
    with slot.filled("b") as beside:
        write_copy(open_bundle(write_tiny(folder / "other.gguf", formats="Q8_0", seed=1)), beside)
    return Template(slot.path, {side: _trained(slot.folder(side), folder / side) for side in SIDES})


def _trained(model: Path, folder: Path) -> Path:
    bundle = open_bundle(model)
    rows = load_rows([{"prompt": "lamp", "completion": "on"}], Tokenizer(bundle.gguf.path), max_length=16)
    run(bundle, rows, folder, TrainConfig(rank=2, steps=1, max_length=16, threads=1, anchors=0))
    return folder


class Process(FakeProcess):
    """Its run has the labels that it learned in its record, as an encoder's has. is_over: whether it ended. emitted:
    its events; handled: those that the queue has done with.
    """

    is_over = False
    emitted = 0
    handled = 0

    def emit(self, event: dict[str, Any] | Exception) -> None:
        self.emitted += 1
        super().emit(event)

    def events(self) -> Iterator[dict[str, Any]]:
        for event in super().events():
            yield event
            self.handled += 1

    @property
    def is_quiet(self) -> bool:
        """Whether it works, and the queue has done with all that it said."""
        return not self.is_over and self.handled == self.emitted

    def end(self, last: dict[str, Any] | None = None, code: int = 0) -> None:
        self.is_over = True
        super().end(last, code)

    @property
    def job(self) -> str:
        return self.folder.name

    @property
    def rows(self) -> set[str]:
        """The marks of the rows that it learns; none of a job that learns nothing."""
        file = self.folder / TRAIN
        return marks_in(file.read_bytes()) if file.exists() else set()

    def train(self) -> None:
        out = self.folder / RUN
        shutil.copytree(template().runs[Path(self.task["model"]).name], out, dirs_exist_ok=True)
        record = {**json.loads((out / lora.RUN).read_text()), LABELS: sorted(self.rows)}
        (out / lora.RUN).write_text(json.dumps(record))
        self.emit({"event": "trained", "tokens": 8, "record": {LABELS: record[LABELS]}})

    def judge(self, passed: bool = True, reason: str = "as the test says", **more: Any) -> None:
        """It says so where the disk refuses its run."""
        try:
            super().judge(passed, reason, **more)
        except OSError as error:
            shutil.rmtree(self.folder / RUN)
            self.fail("DiskFullError", str(error), disk=True, resumable=True)


class Processes(FakeWorkers):
    def __call__(self) -> Process:
        return Process(next(self._pids), self._begun)

    def next(self) -> Process:
        found = super().next()
        assert isinstance(found, Process)
        return found


class Rig:
    """The service below `place`, which stops and starts. process: of the job that runs, None: none does."""

    def __init__(self, place: Path, **options: Any) -> None:
        self.place = place
        self.state = place / "state"
        self.options = options
        self.process: Process | None = None
        self._patches = ExitStack()
        for target, name, instead in ((service, "open_answering", lambda gguf, *_: StubAnswering(gguf.path)),
                                      (service, "read_device", cache(read_device)),
                                      (service, "Sensors", cache(lambda zones: Sensors(zones=zones))),
                                      (memory, "in_use", lambda _: (0, 0)),
                                      (memory, "of_all_processes", lambda: 2**26),
                                      (VectorStores, "encoder", lambda _: StubVectors())):
            self._patches.enter_context(mock.patch.object(target, name, instead))
        self.slot = Slot(shutil.copytree(template().slot, place / "tiny", symlinks=True))
        same_holdout(self.state)
        (place / "canary.txt").write_text("turn the light on")
        self.start()

    def unstarted(self) -> Service:
        config = DaemonConfig(state=str(self.state), canary=str(self.place / "canary.txt"), context=512, threads=1,
                              max_kl="off", learn="idle", learn_rows=10, **self.options)
        return Service(self.slot.path, config, Policy(govern=False), TRAINING, lambda: self.workers())

    def start(self) -> None:
        self.workers = Processes()
        self.service = self.unstarted().start()
        self.base = self.service.bundle.fingerprint
        self.quiet()

    def stop(self) -> None:
        self.service.stop()
        self.process = None

    def close(self) -> None:
        self.stop()
        self._patches.close()

    @property
    def stores(self) -> VectorStores:
        return self.service.running["documents"].stores

    # ---- waiting ------------------------------------------------------------------------------------------------

    def quiet(self) -> None:
        """Waits until no thread has anything to do: a process waits for what it is told, and stores are indexed."""
        end = time.monotonic() + PATIENCE
        while not (self._queue_is_quiet() and self._stores_are_quiet()):
            assert time.monotonic() < end, "the threads do not come to rest"
            time.sleep(0.0002)

    def _queue_is_quiet(self) -> bool:
        queue = self.service.jobs._queue
        while not self.workers.are_idle:
            self.process = self.workers.next()
        if queue._process is not None:
            return queue._process is self.process and self.process.is_quiet
        if queue.job is not None or (queue.table.next() is not None and not queue.paused_reason):
            return False
        self.process = None
        return True

    def _stores_are_quiet(self) -> bool:
        """Whether each store is as its files are, or waits for a minute after an error."""
        stores = self.stores
        waits = {id for id, at in stores._due.items() if at > time.monotonic()}
        return all(store.id in waits or not (store.stale or store.status == IN_PROGRESS) for store in stores.list())

    def later(self) -> None:
        """A minute passes for what waits to be tried again."""
        queue = self.service.jobs._queue
        with queue.changed:
            queue._retry_at = 0.0
            queue.changed.notify_all()
        stores = self.stores
        with stores._changing:
            stores._due = dict.fromkeys(stores._due, 0.0)
            stores._changing.notify_all()
        self.service.learner._retry_at = 0.0
        self.service.learner.tick(0.0)  # too early to begin a job
        self.service.store._probe_at = 0.0
        end = time.monotonic() + PATIENCE
        while queue.paused_reason and queue.table.next() is not None:
            assert time.monotonic() < end, queue.paused_reason
            time.sleep(0.0002)
        self.quiet()

    def picture(self) -> dict[str, Any]:
        """All that is kept, but the history of a job that goes on: each start adds to it."""
        read = self.service.store.read
        tables = {row["name"] for row in read("SELECT name FROM sqlite_master WHERE type = 'table'")}
        if self.process:
            tables -= {"events", "sqlite_sequence"}
        found: dict[str, Any] = {name: [tuple(row) for row in read(f"SELECT * FROM {name}")] for name in tables}
        found["files"] = sorted(str(path.relative_to(self.state)) for path in self.state.rglob("*"))
        return found

    # ---- accidents ----------------------------------------------------------------------------------------------

    def killed(self, number: int) -> AbstractContextManager[Kill]:
        """A kill before the change of a file with this number, or at the end; `start_from_copy` follows."""
        return killed(self.state, self.place / "copy", number)

    def start_from_copy(self) -> None:
        """Starts on what the kill left."""
        self.stop()
        shutil.rmtree(self.state)
        (self.place / "copy").rename(self.state)
        self.start()

    @contextmanager
    def pages(self, more: int) -> Iterator[None]:
        """The database may have so many pages more; connections that are opened meanwhile may have any number."""
        limited = [*self.service.store._idle]
        (count,) = limited[0].execute("PRAGMA page_count").fetchone()
        try:
            for db in limited:
                db.execute(f"PRAGMA max_page_count = {count + more}")
            yield
        finally:
            for db in limited:
                db.execute(f"PRAGMA max_page_count = {2**30}")


# ---- marks -----------------------------------------------------------------------------------------------------------


MARK = re.compile(rb"zq[0-9a-f]{8}")


def mark_of(number: int) -> str:
    return f"zq{number:08x}"


def marks_in(content: bytes) -> set[str]:
    return {found.decode() for found in set(MARK.findall(content))}


def marks_below(folder: Path) -> dict[str, set[str]]:
    """The files below `folder` that hold each mark, in their bytes or names, by their paths within it."""
    found: dict[str, set[str]] = defaultdict(set)
    for path in folder.rglob("*"):
        name = str(path.relative_to(folder))
        content = name.encode() + (b"\n" + path.read_bytes() if path.is_file() else b"")
        for mark in marks_in(content):
            found[mark].add(name)
    return found
