"""kill -9 of the daemon, and nothing that it accepted is lost.

`edgetune serve` on a tiny model, with its own process for training, is killed at random moments of starting, uploads,
training, judging, edits of feedback, promotions and roll-backs, and started again. After every kill a copy of its
database must pass SQLite's checks; every file, job, row of feedback and adapter that a client was told of must be
there, with its bytes; what answers must be one adapter or the base, as the last promotion that was acknowledged, or a
later one, says. In the end all jobs get through, and each adapter has the bytes of a job that nobody disturbed.
"""

import argparse
import hashlib
import json
import random
import shutil
import sqlite3
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
from lab.common import add, environment
from services import until
from tiny import write_tiny

from edgetune.daemon.jobs.worker import is_done

TARGETS = {"start": 2.0, "upload": 4.0, "promotion": 4.0, "rollback": 4.0, "training": 8.0,
           "edits": 4.0}  # seconds to a kill
ROWS = [{"prompt": f"turn on lamp {i}", "completion": json.dumps({"lamp": i})} for i in range(24)]
OPTIONS = {"rank": 4, "batch_size": 4, "threads": 1, "max_length": 64, "lr": 0.01, "steps": 150, "eval_every": 50,
           "checkpoint_every": "0.02s"}
NOTES = 20  # pieces of feedback, of which some are edited, at least
LINE = 2  # jobs that are not finished, at least
PATIENCE = 120.0  # seconds


@dataclass
class Told:
    """What clients know: they got an answer."""

    files: dict[str, str] = field(default_factory=dict)  # id -> SHA-256
    jobs: set[str] = field(default_factory=set)
    notes: dict[str, set[str]] = field(default_factory=dict)  # id -> corrections, of which one must be there: the last
    # that was acknowledged, and those that were sent after it
    leaving: set[str] = field(default_factory=set)  # notes that were asked to be deleted, without an answer yet
    deleted: set[str] = field(default_factory=set)
    adapters: dict[str, str] = field(default_factory=dict)  # id -> SHA-256
    moves: list[str | None] = field(default_factory=list)  # what came into service, in order
    doing: str = "nothing"


class Proof:
    def __init__(self, place: Path, seed: int) -> None:
        self.place = place
        self.state = place / "state"
        self.rng = random.Random(seed)
        self.told = Told()
        self.met: Counter[str] = Counter()
        write_tiny(place / "tiny.gguf", formats="Q8_0")
        transport = httpx.HTTPTransport(uds=str(place / "socket"))
        self.http = httpx.Client(base_url="http://localhost", transport=transport, timeout=PATIENCE)

    def prove(self, kills: int) -> None:
        for number in range(kills):
            target = list(TARGETS)[number % len(TARGETS)]
            self.told.doing = "starting" if target == "start" else "checking"
            self.live(target if self.told.adapters or target not in ("promotion", "rollback") else "training")
            self.met[f"{self.told.doing}, {self.phase()}"] += 1
            self.check_disk()
        self.finish()

    # ---- one life -----------------------------------------------------------------------------------------------

    def live(self, target: str) -> None:
        process = self.start()
        moment = self.rng.uniform(0, TARGETS[target])
        if target == "start":
            time.sleep(moment)
        else:
            self.wait_until_ready(process)
            self.check_answers()
            self.fill_line()
            threading.Timer(moment, process.kill).start()
            self.act(target, process)
        process.kill()
        error = process.communicate()[1]
        assert process.returncode == -9, error
        until(lambda: not processes(self.place), PATIENCE, "the worker outlived the daemon")

    def start(self) -> subprocess.Popen[str]:
        command = [sys.executable, "-m", "edgetune", "serve", "tiny.gguf", "--state", "state", "--socket", "socket",
                   "--keep", "100", "--threads", "1"]
        return subprocess.Popen(command, cwd=self.place, env=environment(), stdout=subprocess.DEVNULL,
                                stderr=subprocess.PIPE, text=True)

    def wait_until_ready(self, process: subprocess.Popen[str]) -> None:
        def ready() -> bool:
            assert process.poll() is None, process.communicate()[1]
            try:
                return '"status":"ok"' in self.http.get("/healthz").text
            except httpx.TransportError:
                return False

        until(ready, PATIENCE, "the daemon does not get well")

    def fill_line(self) -> None:
        while sum(job["status"] in ("queued", "running") for job in self.all("/v1/fine_tuning/jobs")) < LINE:
            self.upload(ROWS)
            body = {"model": "tiny", "training_file": next(reversed(self.told.files)), "seed": 1,
                    "hyperparameters": OPTIONS}
            self.told.jobs.add(self.ask("POST", "/v1/fine_tuning/jobs", json=body)["id"])

    def act(self, target: str, process: subprocess.Popen[str]) -> None:
        """Requests until nobody answers."""
        try:
            while process.poll() is None:
                self.told.doing = target
                if target == "upload":
                    self.upload([{"text": str(self.rng.random())} for _ in range(self.rng.randrange(1, 4000))])
                elif target == "promotion":
                    id = self.rng.choice(list(self.told.adapters))
                    self.told.moves.append(self.ask("POST", f"/v1/adapters/{id}/promote")["serving"])
                elif target == "rollback" and self.ask("GET", "/v1/adapters")["serving"]:
                    self.told.moves.append(self.ask("POST", "/v1/adapters/rollback")["serving"])
                elif target == "rollback":
                    for id in self.told.adapters:
                        self.told.moves.append(self.ask("POST", f"/v1/adapters/{id}/promote")["serving"])
                elif target == "edits":
                    self.edit()
                else:
                    self.note()
                    time.sleep(0.1)
        except httpx.TransportError:
            pass

    def upload(self, rows: list[dict[str, str]]) -> None:
        content = "".join(json.dumps(row) + "\n" for row in rows).encode()
        file = self.ask("POST", "/v1/files", data={"purpose": "fine-tune"}, files={"file": ("rows.jsonl", content)})
        self.told.files[file["id"]] = hashlib.sha256(content).hexdigest()

    def note(self) -> None:
        body = {"prompt": f"lamp {self.rng.random()}", "answer": "on", "correction": "off"}
        self.told.notes[self.ask("POST", "/v1/feedback", json=body)["id"]] = {"off"}

    def edit(self) -> None:
        """A piece of feedback gets another correction, or is deleted."""
        while len(self.told.notes) < NOTES:
            self.note()
        id = self.rng.choice(list(self.told.notes))
        if self.rng.random() < 0.2:
            self.told.leaving.add(id)
            self.ask("DELETE", f"/v1/feedback/{id}")
            self.told.leaving.discard(id)
            del self.told.notes[id]
            self.told.deleted.add(id)
        else:
            word = f"off {self.rng.random()}"
            self.told.notes[id].add(word)
            self.ask("PATCH", f"/v1/feedback/{id}", json={"correction": word})
            self.told.notes[id] = {word}

    def ask(self, method: str, path: str, **options: Any) -> Any:
        response = self.http.request(method, path, **options)
        assert response.status_code == 200, response.text
        return response.json()

    def all(self, path: str) -> list[dict[str, Any]]:
        """Every page of a list."""
        found: list[dict[str, Any]] = []
        while True:
            page = self.ask("GET", path, params={"limit": 100, **({"after": found[-1]["id"]} if found else {})})
            found += page["data"]
            if not page["has_more"]:
                return found

    # ---- what must hold -----------------------------------------------------------------------------------------

    def check_disk(self) -> None:
        """After a kill, before the daemon repairs anything."""
        with database_of(self.state) as db:
            if db:
                self.check_database(db)
            else:
                assert not self.told.files

    def check_database(self, db: sqlite3.Connection) -> None:
        if not db.execute("SELECT 1 FROM sqlite_master WHERE name = 'service'").fetchall():
            assert not self.told.files
            return
        files, jobs, notes, adapters = (dict(db.execute(f"SELECT id, {column} FROM {table}")) for table, column in (
            ("files", "sha256"), ("jobs", "finished_at"), ("feedback", "answer"), ("adapters", "sha256")))
        assert self.told.files.items() <= files.items()
        assert self.told.jobs <= jobs.keys()
        self.check_notes(notes)
        assert self.told.adapters.items() <= adapters.items()
        for id, wanted in files.items():
            assert wanted in map(sha256, self.files_of(id)), id
        for id, folder in db.execute("SELECT id, folder FROM adapters"):
            assert sha256(stored(self.state / "adapters" / folder) / "adapter.gguf") == adapters[id], id
        for id, finished in jobs.items():
            assert finished or (stored(self.state / "runs" / id) / "train.jsonl").exists(), f"{id} lost its rows"
        served = [row[0] for row in db.execute("SELECT adapter FROM service ORDER BY seq")]
        assert not served or served[-1] is None or served[-1] in adapters
        line = iter(served)
        assert all(move in line for move in without_repeats(self.told.moves)), (self.told.moves, served)
        self.told.adapters = adapters

    def check_notes(self, found: dict[str, str]) -> None:
        """Of feedback by its id, the correction. What was found holds from now on."""
        told = self.told
        assert self.told.deleted.isdisjoint(found), "deleted feedback is back"
        for id in told.leaving - found.keys():
            told.deleted.add(id)
            del told.notes[id]
        told.leaving.clear()
        for id, words in told.notes.items():
            assert found[id] in words, (id, found[id], words)
            told.notes[id] = {found[id]}

    def files_of(self, id: str) -> list[Path]:
        """An upload's rows, or a job's results."""
        places = (stored(self.state / "files" / f"{id}.{kind}") for kind in ("jsonl", "csv"))
        return [place for place in places if place.exists()]

    def check_answers(self) -> None:
        """After a start: the same by the API, one in service, and nothing half-written is left."""
        listed = self.ask("GET", "/v1/adapters")
        assert self.told.adapters.keys() <= {adapter["id"] for adapter in listed["data"]}
        serving = [adapter["id"] for adapter in listed["data"] if adapter["state"] == "serving"]
        assert serving == ([listed["serving"]] if listed["serving"] else [])
        answer = self.ask("POST", "/v1/completions", json={"model": "tiny:latest", "prompt": "lamp", "max_tokens": 2})
        assert answer["model"] in (listed["serving"], "tiny", "tiny:latest", self.ask("GET", "/v1/adapters")["serving"])
        jobs = self.all("/v1/fine_tuning/jobs")
        assert self.told.jobs <= {job["id"] for job in jobs}
        assert not [job["error"] for job in jobs if job["status"] == "failed"]
        self.check_notes({note["id"]: note["answer"] for note in self.all("/v1/feedback")})
        files = self.all("/v1/files")
        assert self.told.files.keys() <= {file["id"] for file in files}
        assert {path.stem for path in (self.state / "files").iterdir()} == {file["id"] for file in files}
        if self.told.files:
            id = self.rng.choice(list(self.told.files))
            content = self.http.get(f"/v1/files/{id}/content").content
            assert hashlib.sha256(content).hexdigest() == self.told.files[id]

    def finish(self) -> None:
        """All jobs get through, to the same bytes."""
        process = self.start()
        self.wait_until_ready(process)
        self.check_answers()
        alone = {"model": "tiny", "training_file": next(iter(self.told.files)), "seed": 1, "hyperparameters": OPTIONS}
        until(lambda: all(job["finished_at"] for job in self.all("/v1/fine_tuning/jobs")), PATIENCE)
        self.upload(ROWS)
        alone["training_file"] = next(reversed(self.told.files))
        last = self.ask("POST", "/v1/fine_tuning/jobs", json=alone)["id"]  # undisturbed
        until(lambda: self.ask("GET", f"/v1/fine_tuning/jobs/{last}")["finished_at"], PATIENCE)
        jobs = self.all("/v1/fine_tuning/jobs")
        process.terminate()
        error = process.communicate(timeout=PATIENCE)[1]
        assert process.returncode == 0, error
        assert {job["status"] for job in jobs} == {"succeeded"}, jobs
        self.check_disk()
        assert {job["fine_tuned_model"] for job in jobs} == self.told.adapters.keys()
        assert len(set(self.told.adapters.values())) == 1, self.told.adapters
        assert list((self.state / "runs").iterdir()) == []

    # ---- looking in from outside --------------------------------------------------------------------------------

    def phase(self) -> str:
        """What training was at when the daemon was killed."""
        runs = [path for path in (self.state / "runs").glob("ftjob-*") if (path / "run").exists()]
        if not runs:
            return "no job at work"
        names = {path.name for run in runs for path in (run / "run").iterdir()}
        if any(name.endswith(".tmp") for name in names):
            return "saving"
        return "judging" if all(is_done(run / "run") for run in runs) else "training"


@contextmanager
def database_of(state: Path) -> Iterator[sqlite3.Connection | None]:
    """A copy of a daemon's database, which passes SQLite's checks, for the daemon must repair its own by itself; None
    before there is one.
    """
    with tempfile.TemporaryDirectory() as copy:
        for path in state.glob("state.db*"):
            shutil.copy(path, copy)
        if not (Path(copy) / "state.db").exists():
            yield None
            return
        with closing(sqlite3.connect(Path(copy) / "state.db")) as db:
            assert db.execute("PRAGMA integrity_check").fetchall() == [("ok",)]
            assert db.execute("PRAGMA foreign_key_check").fetchall() == []
            yield db


def processes(folder: Path) -> list[int]:
    """Those whose folder it is, such as those that a daemon left."""
    found = []
    for path in Path("/proc").glob("[0-9]*"):
        try:
            if (path / "cwd").readlink() == folder and "\nState:\tZ" not in (path / "status").read_text():
                found.append(int(path.name))
        except OSError:
            continue
    return found


def without_repeats(moves: list[str | None]) -> list[str | None]:
    """A promotion of what serves already changes nothing."""
    return [move for i, move in enumerate(moves) if i == 0 or move != moves[i - 1]]


def stored(path: Path) -> Path:
    """Where the bytes are: a kill may come between a row and the name of what it names; the next start gives it."""
    return path if path.exists() else path.with_name(f"{path.name}.tmp")


def sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def options(parser: argparse.ArgumentParser) -> None:
    add(parser, kills=100, seed=0)


def main(args: argparse.Namespace) -> None:
    with tempfile.TemporaryDirectory() as place:
        began = time.monotonic()
        proof = Proof(Path(place).resolve(), args.seed)
        proof.prove(args.kills)
    for what, count in proof.met.most_common():
        print(f"{count:4} kills: {what}")
    told = proof.told
    print(f"{args.kills} kills; {len(told.files)} files, {len(told.jobs)} jobs, {len(told.notes)} rows of feedback, "
          f"{len(told.adapters)} adapters, {len(told.moves)} changes of service: all there, the same bytes; "
          f"{time.monotonic() - began:.0f} s")
