"""A program of Flower that ends with this process, and the words that start edgetune from Flower's apps."""

from __future__ import annotations

import os
import signal
import subprocess
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path

from .....errors import printable
from .....python_child import child, die_with

STOP_SECONDS = 10.0
_TAIL = 1 << 14  # bytes of a log that are looked at
_OWN = ("PYTHONPATH", "GGML_NO_BACKTRACE", "OPENBLAS_NUM_THREADS")


def command(*words: str) -> tuple[list[str], dict[str, str]]:
    """Returns (the words of a command of this edgetune, variables that its environment needs)."""
    started = child("edgetune.__main__")
    return [*started["args"], *words], {name: started["env"][name] for name in _OWN if name in started["env"]}


@contextmanager
def running(words: Sequence[str], variables: Mapping[str, str], log: Path) -> Iterator[subprocess.Popen[bytes]]:
    """Yields a program with all that it starts, which are asked to end when the block does. log: what they print is
    added.
    """
    with log.open("ab") as file:
        process = subprocess.Popen(words, env=variables, stdin=subprocess.DEVNULL, stdout=file, stderr=file,
                                   start_new_session=True, preexec_fn=partial(die_with, os.getpid()))
    try:
        yield process
    finally:
        for number in (signal.SIGTERM, signal.SIGKILL):
            with suppress(ProcessLookupError):
                os.killpg(process.pid, number)
            with suppress(subprocess.TimeoutExpired):
                process.wait(STOP_SECONDS)


def last_line(log: Path) -> str:
    """Returns the last line of a log that says something, as one line of a sentence."""
    with suppress(OSError), log.open("rb") as file:
        file.seek(max(0, log.stat().st_size - _TAIL))
        lines = [" ".join(line.split()) for line in file.read().decode("utf-8", "replace").splitlines()]
        return printable(next((line for line in reversed(lines) if line), "")[:300])
    return ""
