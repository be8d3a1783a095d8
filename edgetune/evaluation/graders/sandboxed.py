"""The process of a python grader: it reads calls as lines of JSON, and answers each with one (see sandbox.py).

Before it runs the grader, it gives up all rights that a grader does not need: see `_restrict`.
"""

from __future__ import annotations

import json
import math
import os
import resource
import sys
import sysconfig
import traceback
from typing import Any, TextIO

from ...python_child import die_with
from . import confinement

SOURCE = "<grader>"
LONGEST = 1000  # characters of an error's text
LIBRARIES = ("/lib", "/lib64", "/usr/lib", "/usr/lib64", "/usr/local/lib", "/usr/share/zoneinfo", "/etc/ld.so.cache",
             "/etc/localtime", "/dev/urandom", "/dev/null")  # what packages load besides Python's folders


def main() -> None:
    calls, replies = _pipes()
    setup = json.loads(calls.readline())
    die_with(setup["parent"])
    try:
        _restrict(setup["memory"], setup["unsafe"])
    except OSError as error:
        _reply(replies, {"refused": str(error)})
        return
    names: dict[str, Any] = {"__name__": "grader"}
    try:
        exec(compile(setup["source"], SOURCE, "exec"), names)
        grade = names["grade"]
    except BaseException as error:
        _reply(replies, {"failed": _text(error)})
        return
    _reply(replies, {"ready": True})
    for line in calls:
        call = json.loads(line)
        try:
            found: dict[str, Any] = {"reward": _reward(grade(call["sample"], call["item"]))}
        except BaseException as error:
            found = {"failed": _text(error)}
        _reply(replies, {"id": call["id"], **found})


def _reward(value: Any) -> float:
    if isinstance(value, str | bytes) or not hasattr(value, "__float__"):
        raise TypeError(f"grade returned a {type(value).__name__}, not a number")
    number = float(value)
    if not math.isfinite(number):
        raise ValueError(f"grade returned {number}, which is not finite")
    return number


def _text(error: BaseException) -> str:
    """The text of an error in one line, with the line number in the source."""
    try:
        lines = [frame.lineno for frame in traceback.extract_tb(error.__traceback__) if frame.filename == SOURCE]
        return f"{type(error).__name__}: {str(error)[:LONGEST]}" + (f" (line {lines[-1]})" if lines else "")
    except BaseException:  # of an error that does not say what it is
        return type(error).__name__


def _pipes() -> tuple[TextIO, int]:
    """Opens the pipes of calls and replies. The grader's own input is empty, and its output is dropped."""
    calls = os.dup(0)
    replies = os.dup(1)
    nothing = os.open(os.devnull, os.O_RDWR)
    for number in (0, 1, 2):
        os.dup2(nothing, number)
    return os.fdopen(calls, encoding="utf-8"), replies


def _reply(descriptor: int, message: dict[str, Any]) -> None:
    left = json.dumps(message).encode() + b"\n"
    while left:
        left = left[os.write(descriptor, left):]


def _restrict(memory: int, unsafe: bool) -> None:
    """Limits memory, in bytes, forbids writing to files and, unless unsafe, all system calls but those of
    confinement.py.

    Where the kernel has Landlock, only Python's own folders and system libraries can be read.
    """
    for which, limit in ((resource.RLIMIT_AS, memory), (resource.RLIMIT_FSIZE, 0), (resource.RLIMIT_CORE, 0)):
        resource.setrlimit(which, (limit, limit))
    folders = _python_folders()
    sys.path = [path for path in sys.path if path in folders]
    sys.dont_write_bytecode = True
    os.environ.pop("PYTHONPATH", None)
    os.chdir("/")
    confinement.no_new_privileges()
    confinement.restrict_files([*folders, *LIBRARIES])
    if not unsafe:
        confinement.restrict_calls()


def _python_folders() -> list[str]:
    """The standard library, and where packages are installed."""
    paths = sysconfig.get_paths()
    own = [paths[name] for name in ("stdlib", "platstdlib", "purelib", "platlib")]
    own += [os.path.join(prefix, "lib") for prefix in (sys.prefix, sys.base_prefix)]  # noqa: PTH118
    installed = [path for path in sys.path if os.path.basename(path) in ("site-packages", "dist-packages")]  # noqa: PTH119
    dynamic = [path for path in sys.path if path.startswith(tuple(own)) and path not in own]
    return list(dict.fromkeys([*own, *dynamic, *installed]))
