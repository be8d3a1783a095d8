"""A node's answer to a task: by a command of edgetune, in a separate process.

A message begins a new process of the client app, so all state is in files. The newest answer is kept: a server that
asks again for the same task, because it was killed in the round, has it at once and with the same bytes.
"""

from __future__ import annotations

import ctypes
import fcntl
import hashlib
import json
import os
import shutil
import signal
import subprocess
from collections.abc import Callable
from pathlib import Path

from .parcel import ANSWER_FILES, MOST_TASK, TASK_FILES, pack, unpack
from .settings import NodeSettings

STOP_SECONDS = 60.0  # for a checkpoint, once the time is over
TOLD = ("rows", "tokens", "held_rows", "loss_before", "loss_after", "seconds", "peak_mib")
_PR_SET_PDEATHSIG = 1


class TrainingFailed(RuntimeError):
    """The command ended without an answer. Its log stays on the node, for it may name files and rows."""


def answer(task: bytes, settings: NodeSettings, seconds: float) -> tuple[bytes, dict[str, int | float]]:
    """Returns (the parcel of the answer, what it says of itself). task: its parcel; seconds: after which the training
    stops, to be continued by a next message for the same task.
    """
    work = Path(settings.work)
    work.mkdir(parents=True, exist_ok=True)
    with (work / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # a server that was killed may have asked for the same
        folder = work / "new"
        shutil.rmtree(folder, ignore_errors=True)
        unpack(task, folder, TASK_FILES, MOST_TASK)
        name = hashlib.sha256((folder / "task.json").read_bytes()).hexdigest()[:16]
        out = work / f"answer-{name}"
        _forget_others(work, name)
        if not out.exists():
            _keep(folder, work / f"task-{name}")
            _train([*settings.train, str(work / f"task-{name}"), *settings.more, "-o", str(out)], settings.variables,
                   seconds)
        if not out.exists():
            raise TrainingFailed("the training was stopped before it had an answer")
        facts = json.loads((out / "answer.json").read_text(encoding="utf-8"))
        return pack(out, ANSWER_FILES), {key: facts[key] for key in TOLD if facts.get(key) is not None}


def _forget_others(work: Path, name: str) -> None:
    """Removes the folders of other tasks, which no server asks for any more."""
    for path in work.iterdir():
        if path.is_dir() and path.name != "new" and name not in path.name:
            shutil.rmtree(path, ignore_errors=True)


def _keep(folder: Path, task: Path) -> None:
    shutil.rmtree(task, ignore_errors=True)
    folder.rename(task)


def _train(words: list[str], variables: dict[str, str], seconds: float) -> None:
    process = subprocess.Popen(words, env=os.environ | variables, stdin=subprocess.DEVNULL,
                               preexec_fn=_stop_with_parent())
    try:
        code = process.wait(seconds)
    except subprocess.TimeoutExpired:
        process.terminate()
        code = process.wait(STOP_SECONDS)
    finally:
        if process.poll() is None:
            process.kill()
    if code != 0:
        raise TrainingFailed(f"edgetune fleet train-round ended with {code}; the log of the node says why")


def _stop_with_parent() -> Callable[[], None]:
    """Returns what the child calls first, so that it stops, with a checkpoint, if this process is killed."""
    library = ctypes.CDLL(None)
    return lambda: library.prctl(_PR_SET_PDEATHSIG, signal.SIGTERM, 0, 0, 0)
