"""Processes of jobs that do what a test tells them, in place of worker.py: a queue without training."""

from __future__ import annotations

import itertools
import json
import queue
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from functools import cache
from pathlib import Path
from typing import Any

from edgetune.daemon.jobs.worker import RUN, STOPPED
from edgetune.data.dataset import load_rows
from edgetune.formats.bundle import open_bundle
from edgetune.llamacpp.tokenizer import Tokenizer
from edgetune.training.config import TrainConfig
from edgetune.training.run import run

SECONDS = 30.0
_END = {"event": "end of the fake"}


class FakeWorkers:
    """A Queue's start_process. errors: raised by the next starts instead, in order."""

    def __init__(self) -> None:
        self.errors: list[Exception] = []
        self._begun: queue.Queue[FakeProcess] = queue.Queue()
        self._pids = itertools.count(1)

    def __call__(self) -> FakeProcess:
        if self.errors:
            raise self.errors.pop(0)
        return FakeProcess(next(self._pids), self._begun)

    def next(self) -> FakeProcess:
        """The next process that was given a task."""
        return self._begun.get(timeout=SECONDS)

    @property
    def are_idle(self) -> bool:
        """Whether no process waits for `next`."""
        return self._begun.empty()


class FakeProcess:
    """A JobProcess. commands: what it was sent. saves: whether it ends by itself when it is stopped."""

    def __init__(self, pid: int, begun: queue.Queue[FakeProcess]) -> None:
        self.pid = pid
        self.task: dict[str, Any] = {}
        self.commands: list[str] = []
        self.saves = True
        self.code = 0
        self._begun = begun
        self._events: queue.Queue[dict[str, Any] | Exception] = queue.Queue()

    # ---- the queue's side ---------------------------------------------------------------------------------------

    def begin(self, task: Mapping[str, Any]) -> None:
        self.task = json.loads(json.dumps(task))
        self._begun.put(self)

    def events(self) -> Iterator[dict[str, Any]]:
        while (event := self._events.get(timeout=SECONDS)) is not _END:
            if isinstance(event, Exception):
                raise event
            yield event

    def send(self, command: str) -> None:
        self.commands.append(command)

    def stop(self) -> None:
        self.commands.append("stop")
        if self.saves:
            self.end({"event": "stopped"}, STOPPED)

    def kill(self) -> None:
        self.commands.append("kill")
        self.end(code=-9)

    def wait(self) -> int:
        return self.code

    # ---- the test's side ----------------------------------------------------------------------------------------

    @property
    def folder(self) -> Path:
        return Path(self.task["folder"])

    def emit(self, event: dict[str, Any] | Exception) -> None:
        self._events.put(event)

    def end(self, last: dict[str, Any] | None = None, code: int = 0) -> None:
        self.code = code
        if last:
            self.emit(last)
        self.emit(_END)

    def step(self, number: int = 1, of: int = 10) -> None:
        """The first step comes with the start of training."""
        if number == 1:
            self.emit({"event": "start", "done": 0, "steps": of, "rows": 9, "plan": {"buffers": []}})
        self.emit({"event": "step", "step": number, "loss": 1.0, "lr": 1e-3, "tokens": 8, "tokens_per_s": 80.0,
                   "seconds": 0.1})

    def train(self) -> None:
        """The folder gets a run as training leaves it."""
        shutil.copytree(_trained(self.task["model"]), self.folder / RUN, dirs_exist_ok=True)
        self.emit({"event": "trained", "tokens": 8, "record": {}})

    def judge(self, passed: bool = True, reason: str = "as the test says", **more: Any) -> None:
        """It ends with this verdict on the run, which it makes where there is none."""
        if not (self.folder / RUN).exists():
            self.train()
        serving = self.task["serving"]
        self.end({"event": "judged", "verdict": {"passed": passed, "reason": reason, "scores": {},
                                                 "against": serving and serving["id"], **more}})

    def fail(self, kind: str = "NumericsError", what: str = "the loss is nan", *, disk: bool = False,
             resumable: bool = False) -> None:
        self.end({"event": "failed", "kind": kind, "what": what, "hint": "", "disk": disk, "resumable": resumable})


@cache
def _trained(model: str) -> Path:
    folder = Path(tempfile.mkdtemp()) / RUN
    bundle = open_bundle(Path(model))
    rows = load_rows([{"prompt": "lamp", "completion": "on"}], Tokenizer(bundle.gguf.path), max_length=16)
    run(bundle, rows, folder, TrainConfig(rank=2, steps=1, max_length=16, threads=1, anchors=0))
    return folder
