"""A daemon's service on a tiny model, for tests: small jobs, and waiting for what must come."""

import json
import sqlite3
import time
from collections.abc import Callable
from hashlib import sha256
from pathlib import Path
from typing import TypeVar

from tiny import write_tiny

from edgetune.daemon.jobs.process import JobProcess, WorkerProcess
from edgetune.daemon.learning.feedback import Feedback
from edgetune.daemon.options import DaemonConfig
from edgetune.daemon.service import Service
from edgetune.daemon.state.database import Store
from edgetune.daemon.state.holdout import KEY, KEY_BYTES, open_holdout
from edgetune.machine.policy import Policy
from edgetune.serving.llama import LlamaModel

ROWS = [{"prompt": f"turn on lamp {i}", "completion": json.dumps({"lamp": i})} for i in range(24)]
SMALL = {"rank": 4, "batch_size": 4, "threads": 1, "max_length": 64, "lr": 0.01, "steps": 20}
LONG = {**SMALL, "steps": 3000, "checkpoint_every": "0.05s"}  # far longer than a test waits
T = TypeVar("T")


def open_service(folder: Path, govern: bool = False, start_process: Callable[[], JobProcess] = WorkerProcess,
                 **options: object) -> Service:
    """Not started yet. Its model is made where it is not there. govern: it gives way to others on this machine. Tiny
    models learn by changing all that they expect, which max_kl would refuse.
    """
    if not (folder / "tiny.gguf").exists():
        write_tiny(folder / "tiny.gguf", formats="Q8_0")
    same_holdout(folder / "state")
    config = DaemonConfig(**{"state": str(folder / "state"), "canary": str(short_canary(folder)), "threads": 1,
                             "max_kl": "off", **options})
    return Service(folder / "tiny.gguf", config, Policy(nice=19, govern=govern), start_process=start_process)


def short_canary(folder: Path) -> Path:
    """A file in it: our own text has 4,000 bytes, which take a second of each job, and of each round of a tutor."""
    (folder / "canary.txt").write_text("turn the light on, set the light to 10, turn the light off")
    return folder / "canary.txt"


def same_holdout(state: Path) -> None:
    """The same rows are held out in every test, where each state has another key otherwise."""
    state.mkdir(exist_ok=True)
    if not (state / KEY).exists():
        (state / KEY).write_bytes(bytes([60]) * KEY_BYTES)


def learned_state(folder: Path, lessons: int = 2, each: int = 20) -> Path:
    """A state folder as a daemon leaves it that has learned corrections, without the adapters that it made."""
    same_holdout(folder)
    store = Store(folder)
    feedback = Feedback(store, open_holdout(folder), DaemonConfig())
    for lesson in range(lessons):
        for i in range(each * lesson, each * lesson + each):
            feedback.add(messages=[{"role": "user", "content": f"turn the light {i}"}], correction="on")
        feedback.assign(feedback.training_rows().taken, f"ftjob-{lesson}")
        feedback.settle(f"ftjob-{lesson}", "used")
    store.close()
    return folder


def upload(service: Service, rows: list[dict[str, object]] = ROWS) -> str:
    """The file's id."""
    return service.files.add("rows.jsonl", "fine-tune", ["".join(json.dumps(row) + "\n" for row in rows).encode()]).id


def answers(service: Service) -> bool:
    """Whether it says what llama.cpp says without a service."""
    with LlamaModel(service.path) as served:
        expected = "".join(served.generate("lamp", max_tokens=3))
    return service.generate("lamp", model=service.name, max_tokens=3).text() == expected


def until(what: Callable[[], T], seconds: float = 60.0, otherwise: str = "it did not happen") -> T:
    """Wait for the first true value of `what`, and return it."""
    deadline = time.monotonic() + seconds
    while not (found := what()):
        assert time.monotonic() < deadline, otherwise
        time.sleep(0.01)
    return found


def make_state(folder: Path, start_process: Callable[[], JobProcess] = WorkerProcess) -> Path:
    """Makes in a folder a model and a daemon's state: two files, two jobs that succeeded, their adapters, the second in
    service, a job that is paused, and three pieces of feedback.
    """
    with open_service(folder, start_process=start_process) as service:
        for suffix in ("first", "second"):
            job = service.jobs.create("tiny", upload(service), suffix=suffix, hyperparameters=SMALL)
            job = service.jobs.wait(job.id, 60)
            assert job.status == "succeeded", job.error
            service.adapters.promote(job.result, "for the test")
        paused = service.jobs.create("tiny", upload(service), hyperparameters=LONG)
        service.jobs.pause(paused.id)
        until(lambda: service.jobs.running is None)
        for number in range(3):
            service.feedback.add(prompt=f"lamp {number}", answer="off", correction="on", model="tiny")
    return folder


def as_version_5(db: sqlite3.Connection) -> None:
    """The tables without what later versions added; the version is for the caller to set."""
    for statement in ("DROP TABLE IF EXISTS prompts", "DROP TABLE switches", "DROP TABLE proposals", "DROP TABLE drawn",
                      "ALTER TABLE jobs DROP COLUMN rounds", "ALTER TABLE adapters DROP COLUMN base",
                      "ALTER TABLE service DROP COLUMN base",
                      *(f"ALTER TABLE feedback DROP COLUMN {name}" for name in ("tries", "expires_at", "vector"))):
        db.execute(statement)


def contents(folder: Path) -> set[str]:
    """Digests of all files that are no part of the database."""
    return {sha256(path.read_bytes()).hexdigest() for path in folder.rglob("*")
            if path.is_file() and not path.name.startswith("state.db")}
