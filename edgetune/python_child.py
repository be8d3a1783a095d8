"""Other Python processes that have its modules, whatever the folder where it was started contains.

`python -m` would look there first: in a clone of edgetune it would find sources without their compiled kernels.
"""

from __future__ import annotations

import ctypes
import json
import os
import resource
import signal
import sys
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any, TextIO

from .machine.procfs import kib

_PR_SET_PDEATHSIG = 1
_LOOK_SECONDS = 0.02  # it takes 1/200 of them
_WALL = 256 << 20  # bytes of address space above a limit where the kernel refuses; llama.cpp aborts there


def child(module: str) -> dict[str, Any]:
    """Arguments `args` and `env` of subprocess.Popen for a process that calls module.main().

    numpy computes there with one thread, if the environment names no other number: its products are small, and threads
    that wait for each other and for our own made the fit of a head 2 to 10 times as long.
    """
    code = f"import sys; sys.path = [path for path in sys.path if path]; from {module} import main; main()"
    own = {"GGML_NO_BACKTRACE": "1",  # or llama.cpp would start a debugger where it aborts
           "PYTHONPATH": os.pathsep.join(path for path in sys.path if path)}
    return {"args": [sys.executable, "-c", code], "env": {"OPENBLAS_NUM_THREADS": "1"} | os.environ | own}


def die_with(parent: int, exit_code: int = 1) -> None:
    """Let the kernel kill this process when the thread that started it is gone. parent: the process of that thread,
    which also decides what a closed terminal ends: this one ignores its SIGHUP.
    """
    with suppress(ValueError):  # not in the main thread
        signal.signal(signal.SIGHUP, signal.SIG_IGN)
    with suppress(OSError, AttributeError):
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    if os.getppid() != parent:
        os._exit(exit_code)


def begin_replies() -> tuple[dict[str, Any], TextIO]:
    """Returns the first message of the parent, a line of JSON, and where replies go. The process ends with the parent,
    whose number the message has.
    """
    out = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # all other output is not a reply
    message = json.loads(sys.stdin.readline())
    die_with(message.pop("parent"))
    return message, out


def reply(out: TextIO, message: Mapping[str, Any]) -> None:
    """Sends a line of JSON to the parent."""
    out.write(json.dumps(message) + "\n")
    out.flush()


def limit_memory(limit: int, least: int) -> None:
    """Raise MemoryError in this process, in its main thread, soon after it has more than `limit` bytes in memory.

    It may always grow by `least` bytes. What one call would take at once and is far more fails in that call.
    """
    status = Path("/proc/self/status")
    limit = max(limit, kib(status, "VmRSS") + least)

    def look(*_signal: object) -> None:
        if kib(status, "VmRSS") > limit:
            unlimit_memory()  # a second error would come while the first one is handled
            raise MemoryError

    signal.signal(signal.SIGALRM, look)
    signal.siginterrupt(signal.SIGALRM, False)
    signal.setitimer(signal.ITIMER_REAL, _LOOK_SECONDS, _LOOK_SECONDS)
    hard = resource.getrlimit(resource.RLIMIT_DATA)[1]
    wanted = kib(status, "VmData") + limit + _WALL
    if hard == resource.RLIM_INFINITY or wanted < hard:
        with suppress(OSError, ValueError):
            resource.setrlimit(resource.RLIMIT_DATA, (wanted, hard))


def resident_memory() -> int:
    """Bytes of this process in memory, as `limit_memory` counts them."""
    return kib(Path("/proc/self/status"), "VmRSS")


def memory_beside(process: int) -> int:
    """Bytes that a process has in memory besides this one's: those of files, mostly libraries, are in memory once."""
    own = Path("/proc/self/status")
    other = Path(f"/proc/{process}/status")
    return kib(other, "RssAnon") + max(kib(other, "RssFile") - kib(own, "RssFile"), 0)


def peak_together(parent: int) -> int:
    """The most bytes that this process had, and those that its parent has besides."""
    return kib(Path("/proc/self/status"), "VmHWM") + memory_beside(parent)


def note_together(nbytes: int) -> None:
    """Lets plans of training in this process count what a child said by `peak_together`."""
    from .machine import device  # here: it takes memory of children
    device.note_together(nbytes)


def unlimit_memory() -> None:
    signal.setitimer(signal.ITIMER_REAL, 0)
    signal.signal(signal.SIGALRM, signal.SIG_IGN)


def how_it_ended(code: int) -> str:
    """An exit code of subprocess.Popen in words."""
    if code >= 0:
        return f"exit code {code}"
    with suppress(ValueError):
        return f"signal {-code}, {signal.Signals(-code).name}"
    return f"signal {-code}"
