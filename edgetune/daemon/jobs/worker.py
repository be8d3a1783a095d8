"""The process of a job, which process.py starts: it trains in STATE/runs/ID, then the gate evaluates the result.

It reads its task from stdin, a line of JSON, and then one command a line: `busy` while requests are answered, then
`free`, and `stop`. It writes events to stdout, a line of JSON each: those of training, then one of

    {"event": "judged", "verdict": ...}
    {"event": "stopped"}
    {"event": "failed", "kind": ..., "what": ..., "hint": ..., "disk": whether the disk, the system or memory
     refused for now, "resumable": whether earlier work can be continued later}

It ends when its parent dies, at any moment; the next process resumes from its last save.
"""

from __future__ import annotations

import gc
import json
import logging
import os
import shutil
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import replace
from importlib import import_module
from pathlib import Path
from typing import Any

from ... import disk
from ...adapters import store
from ...data import loader
from ...data.dataset import Dataset
from ...errors import (
    DiskError,
    EdgetuneError,
    FormatError,
    Interrupted,
    MismatchError,
    TooMuchError,
    UsageError,
    named,
)
from ...evaluation.graders.base import set_time_limit
from ...evaluation.graders.sandbox import limit_processes, share_of
from ...formats.bundle import open_bundle
from ...machine.device import read_device, shared_memory, trim
from ...machine.governor import Governor
from ...machine.policy import Policy
from ...objectives.drawn import Rewarded
from ...persisted import from_json
from ...python_child import die_with
from ...runs.reported import is_reported, reported, try_report
from ...training import checkpoint, run
from ...training.callbacks import RunCallbacks
from ...training.config import TrainConfig
from ...training.metrics import NAME as METRICS
from ...training.sizing import as_begun, load_sized
from ...training.throttle import AnswerPriority, be_nice
from ...version import __version__
from ..kinds.registry import kind_of
from ..options import AllowedPython, Limits
from . import recipe
from .exam import BETTER, AskedAdapter, GateExam, read_scores
from .recipe import SELECTING, TRAIN, corrected_rows, drawn_rows, held_rows, measured_file
from .rewards import Rewarding, eval_samples, with_rewards
from .room import Room

RUN = "run"  # the folder of train.run, within the job's
STOPPED = 75  # exit code
ALIVE = "alive"  # the event that says that this process works
ALIVE_SECONDS = 60.0
GRADER_SECONDS = 240.0  # for an answer; longer than a python grader's own limits
OLD, NEW = "old", "new"  # names of adapters in the gate
Emit = Callable[[dict[str, Any]], None]


class ParentCommands:
    """Commands of the parent while this process works; a separate thread reads them. Another tells the parent each
    ALIVE_SECONDS that this process still works. The work checks here for commands.
    """

    def __init__(self, emit: Emit) -> None:
        self._emit = emit
        self._works = True
        self._busy = False
        self._stopping = False
        self._saves = False  # whether the current work checks `stopping` and saves
        self._lock = threading.Lock()

    def listen(self) -> None:
        for line in sys.stdin:
            command = line.strip()
            if command == "stop":
                break
            self._busy = command == "busy"
        self.stop()

    def beat(self) -> None:
        while True:
            time.sleep(ALIVE_SECONDS)
            if self._works:
                self._works = False
                with suppress(BrokenPipeError):
                    self._emit({"event": ALIVE})

    def is_busy(self) -> bool:
        self._works = True
        return self._busy

    def should_stop(self) -> bool:
        self._works = True
        return self._stopping

    def stop(self, *_signal: object) -> None:
        with self._lock:
            self._stopping = True
            if not self._saves:
                os._exit(STOPPED)  # nothing is lost: finished work is on disk

    def set_saves(self, whether: bool) -> None:
        with self._lock:
            self._saves = whether
            if self._stopping and not whether:
                os._exit(STOPPED)


def main() -> None:
    try:
        _answer()
    except BrokenPipeError:
        os._exit(STOPPED)


def _answer() -> None:
    emit = _take_stdout()
    backends = logging.getLogger("edgetune.backends")
    backends.setLevel(logging.INFO)
    backends.addHandler(LogLines(emit))
    if not (asked := sys.stdin.readline()):
        os._exit(STOPPED)  # the parent died before it could ask
    task = json.loads(asked)
    die_with(task["parent"], STOPPED)
    be_nice(task["policy"]["nice"])
    commands = ParentCommands(emit)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the parent, which sends a command
    # the main thread may hold the lock that stop() takes
    signal.signal(signal.SIGTERM, lambda *_: threading.Thread(target=commands.stop).start())
    set_time_limit(GRADER_SECONDS)
    for loop in (commands.listen, commands.beat):
        threading.Thread(target=loop, daemon=True).start()
    if code := work(task, commands, emit):
        sys.exit(code)


def work(task: dict[str, Any], commands: ParentCommands, emit: Emit) -> int:
    """Does the task and emits how it ends. Returns the exit code."""
    has_begun = False
    try:
        worker = Worker(task, commands, emit)
        has_begun = worker.has_begun
        emit({"event": "judged", "verdict": worker.kind.work(worker)})
    except Interrupted:
        emit({"event": "stopped"})
        return STOPPED
    except EdgetuneError as error:
        may_succeed_later = isinstance(error, DiskError) or type(error) is TooMuchError
        emit({"event": "failed", "kind": type(error).__name__, "what": error.what, "hint": error.hint,
              "disk": may_succeed_later, "resumable": has_begun and isinstance(error, UsageError)})
    except FileNotFoundError as error:
        emit({"event": "failed", "kind": "FormatError", "what": f"{error.filename}, which the job needs, is gone",
              "hint": "begin another job", "disk": False, "resumable": False})
    except OSError as error:
        if error.errno not in disk.NO_ROOM:
            raise
        emit({"event": "failed", "kind": type(error).__name__, "what": f"no process can be started: {error.strerror}",
              "hint": "", "disk": True, "resumable": True})
    except MemoryError:
        emit({"event": "failed", "kind": "MemoryError", "what": "there was not enough memory",
              "hint": "lower micro_batch or max_length", "disk": False, "resumable": False})
    return 0


class LogLines(logging.Handler):
    """A handler that sends lines to the daemon's log: what computes, and which work takes long."""

    def __init__(self, tell: Emit) -> None:
        super().__init__()
        self._tell = tell

    def emit(self, record: logging.LogRecord) -> None:
        self._tell({"event": "log", "line": record.getMessage()})


class Worker:
    """A task in progress. Raises MismatchError, or the errors of opening the model."""

    def __init__(self, task: dict[str, Any], commands: ParentCommands, emit: Emit) -> None:
        if task["version"] != __version__:
            raise MismatchError(f"the daemon is edgetune {task['version']}, what it starts is {__version__}",
                                "restart the daemon: edgetune was replaced while it ran")
        self.task = task
        self.commands = commands
        self.emit = emit
        self.folder = Path(task["folder"])
        self.out = self.folder / RUN
        self.method = task["method"]
        self.canary = task["canary"]
        self.config = recipe.with_system(from_json(TrainConfig, task["config"], "the task"), self.folder)
        self.room = from_json(Room, task["room"], "the task").wider(shared_memory())
        self.limits = from_json(Limits, task["limits"], "the task")
        self.python = from_json(AllowedPython, task["python"], "the task")
        import_module(task["kind"]["module"])
        self.kind = kind_of(task["kind"]["origin"])
        objective = self.kind.objective(self.folder, self.method)
        self.objective, self.rewards = with_rewards(objective, self.python, runs=True)
        if self.rewards:
            self.make_room_for_graders(self.rewards.process_bytes)
        self.bundle = open_bundle(task["model"])
        self.has_begun = self.kind.has_begun(self.folder)  # in an earlier process
        serving = task["serving"]
        self.old = AskedAdapter(OLD, read_scores(serving["scores"])) if serving else AskedAdapter(None)

    def make_room_for_graders(self, nbytes: int) -> None:
        """Leaves memory to processes of graders that may take so much, and limits them to it."""
        share = share_of(self.room.resident, nbytes)
        if share:
            limit_processes(share)
        self.room = self.room.wider(-share)

    @property
    def is_trained(self) -> bool:
        """Returns whether the run is complete, so that it can be evaluated."""
        return is_done(self.out)

    def evaluate(self) -> dict[str, Any]:
        """Returns the gate's verdict on the run, as JSON; against: the adapter that was active."""
        gc.collect()
        trim()
        record = store.read_run(self.out)
        self.emit({"event": "trained", "tokens": trained_tokens(self.out)})
        verdict = self.judged(self.out)
        if gap := self._gap(verdict["scores"], record):
            self.emit(gap)
        return verdict

    def _gap(self, scores: Mapping[str, Any], record: Mapping[str, Any]) -> dict[str, Any] | None:
        """Returns held-out rewards by llama.cpp and by the engine that trained, which should be near; None: unknown."""
        rewarding = self.rewarding()
        measured = record["held_out"]
        if rewarding is None or measured is None or measured["loss_after"] is None:
            return None
        if (self.folder / SELECTING).exists():
            return None  # other rows were measured than those that llama.cpp answers
        asked = held_rows(self.folder)[0][:eval_samples(self.method)]
        found = [scores.get(rewarding.key(row), {}).get("reward") for row in asked]
        earned = [reward for reward in found if reward is not None]
        if not earned or len(earned) < len(asked):
            return None
        served = sum(earned) / len(earned)
        return {"event": "served", "step": measured["best_step"], "reward": served, "engine_reward":
                -measured["loss_after"], "gap": served + measured["loss_after"], "rows": len(earned)}

    @contextmanager
    def saving(self) -> Iterator[RunCallbacks]:
        """Yields the callbacks for work that checks `should_stop`, saves and then raises Interrupted. Other work is
        broken off where the job is stopped.
        """
        governor = Governor(from_json(Policy, self.task["policy"], "the task"), read_device().profile)
        self.commands.set_saves(True)
        yield RunCallbacks(self.emit, self.commands.should_stop, governor, self.commands.is_busy)
        self.commands.set_saves(False)

    def train(self) -> None:
        """Trains in the job's folder; resumes where a run exists, or begins again where it cannot be resumed. If a kill
        came between a complete run and its report, it writes that.
        """
        def within(config: TrainConfig, shortens: bool) -> None:
            self.config = config
            with reported(self.out):
                self._train(shortens)

        if not self.is_trained:
            self.room.fitting(self.config, within)
        elif not is_reported(self.out):
            try_report(self.out)

    def _train(self, shortens: bool) -> None:
        measured = measured_file(self.folder, self.objective.rows)
        asked = self.objective
        self.config, self.objective, (rows, held) = load_sized(
            self.bundle, as_begun(self.config, self.out), asked,
            lambda config: loader.load(self.bundle.gguf.path, (self.folder / TRAIN, measured), config,
                                       asked.rows, learnable=False),  # clients' rows were checked already
            shortens=shortens)
        assert rows
        if held and self.rewards:
            most = eval_samples(self.method)
            held = replace(held, examples=held.examples[:most], rows=held.rows[:most])
        if not (self.out.exists() and self._resume(rows, held)):
            self._run(rows, held, resume=False)

    def _resume(self, rows: Dataset, held: Dataset | None) -> bool:
        """Returns whether the run could be resumed; one that could not is removed."""
        try:
            self._run(rows, held, resume=True)
        except (MismatchError, FormatError) as error:
            # another edgetune, other kernels, no checkpoint that is whole
            self.emit({"event": "again", "what": error.what})
            shutil.rmtree(self.out)
            return False
        return True

    def _run(self, rows: Dataset, held: Dataset | None, resume: bool) -> None:
        with self.saving() as callbacks:
            run.run(self.bundle, rows, self.out, self.config, held_out=held, resume=resume,
                    callbacks=callbacks, objective=self.objective, rewards=self.rewards)

    def judged(self, adapter: Path, required: str = BETTER) -> dict[str, Any]:
        """Returns the gate's verdict on an adapter, a folder, against the active one, as JSON; against: that one's id.
        required: as of GateExam.
        """
        from . import gate
        rows, rounds = held_rows(self.folder)
        serving = self.task["serving"]
        longest = as_begun(self.config, adapter).row_limit
        drawn = drawn_rows(self.folder)
        exam = GateExam(rows, self.canary, rounds, corrected_rows(self.folder), self.config.instruction, longest,
                    self.rewarding(), self.task["tests_before"], required, drawn.rated, drawn.unrated,
                    self.kind.population)
        adapters = {NEW: adapter}
        if self.old.name:
            adapters[OLD] = Path(serving["path"])
        with gate.opened(self.bundle.gguf, adapters, exam, self.room.resident, self.config.threads,
                         AnswerPriority(self.commands.is_busy),
                         lambda done, of: self.emit({"event": "judging", "done": done, "of": of})) as examiner:
            verdict = gate.evaluate(examiner, exam, self.old, AskedAdapter(NEW), self.limits)
        return {**verdict.to_json(), "against": serving and serving["id"]}

    def rewarding(self) -> Rewarding | None:
        """Returns how answers are rewarded; None: they are not."""
        if self.rewards is None or not isinstance(self.objective, Rewarded):
            return None
        return Rewarding(self.objective, self.rewards)


def is_done(out: Path) -> bool:
    """Returns whether a run is complete, so that only its evaluation remains. Raises TooMuchError where the system
    opens no further file.
    """
    try:
        with disk.refusals():
            status = json.loads((out / store.RUN).read_text())["status"]
    except (OSError, ValueError):
        return False
    return bool(status == "done") and not checkpoint.found(out)


def trained_tokens(out: Path) -> int:
    """Returns the tokens of all steps; lines of steps that were done twice are already removed. Raises FormatError
    where the file of steps is gone or damaged.
    """
    try:
        lines = map(json.loads, (out / METRICS).read_text().splitlines())
        return sum(line["tokens"] for line in lines if line["event"] == "step")
    except (FileNotFoundError, ValueError, KeyError, TypeError) as error:
        raise FormatError(f"{out / METRICS} of the training is gone or damaged: {named(error)}",
                          "begin another job") from None


def _take_stdout() -> Emit:
    """Returns a function that sends events to the parent as lines of JSON; all other output goes to stderr."""
    out = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    lock = threading.Lock()

    def emit(event: dict[str, Any]) -> None:
        with lock:
            out.write(json.dumps(event) + "\n")
            out.flush()

    return emit
