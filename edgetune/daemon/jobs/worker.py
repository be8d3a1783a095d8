"""A job's own process: it trains in STATE/runs/ID, then lets the gate judge the result. Started by runner.py.

It reads a line of JSON from stdin, what to do, and then a word a line: `busy` and `free` as people are answered or not,
`stop`. It says what happens in lines of JSON on stdout: the events of train.run, then one of {"event": "judged",
"verdict": ...}, {"event": "stopped"}, {"event": "failed", "kind": ..., "what": ..., "hint": ..., "disk": whether it
refused}. It ends with its parent, at whatever moment that dies; what it had saved then is taken up by the next one.
"""

from __future__ import annotations

import gc
import json
import os
import shutil
import signal
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

from ...adapters import store as adapter
from ...data import loader
from ...data import rows as supervised_rows
from ...data.dataset import Dataset
from ...errors import DiskError, EdgetuneError, FormatError, Interrupted, MismatchError, UsageError
from ...formats.bundle import Bundle, open_bundle
from ...machine import device
from ...machine.governor import Governor
from ...machine.policy import Policy
from ...objectives.base import Objective
from ...persisted import from_json
from ...python_child import die_with
from ...training import checkpoint
from ...training import run as train
from ...training.config import TrainConfig
from ...training.metrics import NAME as METRICS
from ...training.throttle import AnswerPriority, be_nice
from ...version import __version__
from .recipe import HELD, TRAIN, held_rows, objective_of

RUN = "run"  # the folder of train.run, within the job's
STOPPED = 75  # exit code
Emit = Callable[[dict[str, Any]], None]


class ParentCommands:
    """What the parent says meanwhile. A separate thread reads it."""

    def __init__(self) -> None:
        self.busy = False
        self.stopping = False
        self._saves = False  # whether whoever is at work asks `stopping`
        self._lock = threading.Lock()

    def listen(self) -> None:
        for word in sys.stdin:
            if word.strip() == "stop":
                break
            self.busy = word.strip() == "busy"
        self.stop()

    def stop(self, *_signal: object) -> None:
        with self._lock:
            self.stopping = True
            if not self._saves:
                os._exit(STOPPED)  # nothing is lost: what is done is on disk

    def saves(self, whether: bool) -> None:
        with self._lock:
            self._saves = whether
            if self.stopping and not whether:
                os._exit(STOPPED)


def main() -> None:
    try:
        _answer()
    except BrokenPipeError:
        os._exit(STOPPED)


def _answer() -> None:
    say = _own_stdout()
    if not (asked := sys.stdin.readline()):
        os._exit(STOPPED)  # the parent died before it could ask
    task = json.loads(asked)
    die_with(task["parent"], STOPPED)
    be_nice(task["policy"]["nice"])
    words = ParentCommands()
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the parent, which says so
    signal.signal(signal.SIGTERM, lambda *_: threading.Thread(target=words.stop).start())  # it may hold the lock
    threading.Thread(target=words.listen, daemon=True).start()
    try:
        say({"event": "judged", **work(task, words, say)})
    except Interrupted:
        say({"event": "stopped"})
        sys.exit(STOPPED)
    except EdgetuneError as error:
        say({"event": "failed", "kind": type(error).__name__, "what": error.what, "hint": error.hint,
             "disk": isinstance(error, DiskError)})
    except MemoryError:
        say({"event": "failed", "kind": "MemoryError", "what": "there was not enough memory",
             "hint": "lower micro_batch or max_length", "disk": False})


def work(task: dict[str, Any], words: ParentCommands, say: Emit) -> dict[str, Any]:
    """Train, unless that is done, and judge."""
    if task["version"] != __version__:
        raise MismatchError(f"the daemon is edgetune {task['version']}, what it starts is {__version__}",
                            "restart the daemon: edgetune was replaced while it ran")
    folder = Path(task["folder"])
    config = from_json(TrainConfig, task["config"], "the task")
    objective, _ = objective_of(task["method"])
    bundle = open_bundle(task["model"])
    if not is_done(folder / RUN):
        judged = folder / HELD if objective.rows is supervised_rows else None  # rows to judge by are of its shapes
        rows, held = loader.load(bundle.gguf.path, (folder / TRAIN, judged), config, objective.rows)
        assert rows
        words.saves(True)
        learn(bundle, rows, held, config, objective, task, words, say)
        words.saves(False)
        del rows, held
    gc.collect()
    device.trim()
    say({"event": "trained", "tokens": trained_tokens(folder / RUN), "record": json.loads(
        (folder / RUN / adapter.RUN).read_text())})
    return {"verdict": judge(bundle, folder, config, task, words)}


def learn(bundle: Bundle, rows: Dataset, held: Dataset | None, config: TrainConfig, objective: Objective,
          task: dict[str, Any], words: ParentCommands, say: Emit) -> None:
    """Train in the job's folder; resume where a run exists, or begin again where it cannot be resumed."""
    out = Path(task["folder"]) / RUN

    def run(resume: bool) -> None:
        governor = Governor(from_json(Policy, task["policy"], "the task"), device.read_device().profile)
        train.run(bundle, rows, out, config, held_out=held, resume=resume, on_event=say,
                  should_stop=lambda: words.stopping, governor=governor, busy=lambda: words.busy,
                  objective=objective)

    if out.exists():
        try:
            run(resume=True)
        except (MismatchError, UsageError, FormatError) as error:
            # another edgetune, other kernels, less memory than its plan takes, no checkpoint that is whole
            say({"event": "again", "what": error.what})
            shutil.rmtree(out)
        else:
            return
    run(resume=False)


def judge(bundle: Bundle, folder: Path, config: TrainConfig, task: dict[str, Any],
          words: ParentCommands) -> dict[str, Any]:
    """The gate's verdict on what was trained, beside the adapter in service, both answered through llama.cpp."""
    from ...serving.llama import LlamaModel
    from . import gate
    old = task["serving"]
    rows, established = held_rows(folder)
    with LlamaModel(bundle.gguf, threads=config.threads or None) as served:
        served.cache.before_decode = AnswerPriority(lambda: words.busy)
        if old:
            served.load_adapter(old["path"], "old")
        served.load_adapter(folder / RUN, "new")
        verdict = gate.judge(served, rows, "old" if old else None, "new", task["canary"], established=established,
                             system=config.system or None, max_length=config.max_length,
                             known=old["scores"] if old else None)
    return {**verdict.to_json(), "against": old and old["id"]}


def is_done(out: Path) -> bool:
    """Whether a run got through: what is left to do is to judge it."""
    try:
        status = json.loads((out / adapter.RUN).read_text())["status"]
    except (OSError, ValueError):
        return False
    return bool(status == "done") and not checkpoint.found(out)


def trained_tokens(out: Path) -> int:
    """Of all steps: the lines of steps that were done twice are gone."""
    lines = map(json.loads, (out / METRICS).read_text().splitlines())
    return sum(line["tokens"] for line in lines if line["event"] == "step")


def _own_stdout() -> Emit:
    """Lines of JSON to whoever started us; what anything else prints goes to stderr."""
    out = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)

    def say(event: dict[str, Any]) -> None:
        out.write(json.dumps(event) + "\n")
        out.flush()

    return say
