"""A job's process, for its parent: events come as dicts, and sending a command does not block."""

from __future__ import annotations

import json
import os
import select
import subprocess
import threading
from collections.abc import Iterator, Mapping
from contextlib import suppress
from typing import Any, Protocol

from ... import disk
from ...errors import EdgetuneError, TooMuchError
from ...python_child import child
from . import worker

STOP_SECONDS = 60.0  # that saving may take before the process is killed
SILENT_SECONDS = 6 * 3600.0  # without a sign of work: then the process hangs, also on a slow board
_CHUNK = 1 << 16


class SilentError(EdgetuneError):
    """A process that hangs."""


class JobProcess(Protocol):
    """A process that does a job. `events` and `wait` are for the thread that started it, the others for any."""

    pid: int

    def begin(self, task: Mapping[str, Any]) -> None:
        """Gives the process its task; commands that were sent before follow."""

    def events(self) -> Iterator[dict[str, Any]]:
        """Yields events until the process ends. Raises SilentError after SILENT_SECONDS without any."""

    def send(self, command: str) -> None:
        """Sends busy, free or stop. A command that is never read is not needed either."""

    def stop(self) -> None:
        """Lets the process save and end; after STOP_SECONDS it is killed."""

    def kill(self) -> None:
        """Kills the process at once; its saved files are complete."""

    def wait(self) -> int:
        """Returns the exit code, negative for a signal, and closes the pipes."""


class WorkerProcess:
    """Starts worker.py. The kernel ends the process together with the thread that makes this object. See JobProcess.

    Raises TooMuchError where the system has no room for another process now.
    """

    def __init__(self, module: str = worker.__name__) -> None:
        try:
            self._process = subprocess.Popen(**child(module), stdin=subprocess.PIPE,
                                             stdout=subprocess.PIPE, start_new_session=True)
        except OSError as error:
            if error.errno not in disk.NO_ROOM:
                raise
            raise TooMuchError(f"no process can be started: {error.strerror}",
                               "it is tried again in a minute") from None
        assert self._process.stdin
        assert self._process.stdout
        self.pid = self._process.pid
        self._stdin = self._process.stdin.fileno()
        self._stdout = self._process.stdout.fileno()
        self._lock = threading.Lock()
        self._early: list[str] | None = []  # commands that were sent before the task
        self._killer = threading.Timer(STOP_SECONDS, self.kill)
        self._killer.daemon = True

    def begin(self, task: Mapping[str, Any]) -> None:
        left = memoryview(json.dumps({**task, "parent": os.getpid()}).encode() + b"\n")
        with suppress(BrokenPipeError):  # it died, which wait() reports
            while left:  # larger than a pipe: this takes until the process reads
                left = left[os.write(self._stdin, left):]
        with self._lock:
            early = self._early or []
            self._early = None
            os.set_blocking(self._stdin, False)
        for command in early:
            self.send(command)

    def events(self) -> Iterator[dict[str, Any]]:
        """Yields events, without a last line that a kill has cut off."""
        poll = select.poll()
        poll.register(self._stdout, select.POLLIN)
        rest = b""
        while True:
            if not poll.poll(SILENT_SECONDS * 1000):
                raise SilentError(f"the training process did nothing for {SILENT_SECONDS / 3600:g} hours",
                                  "see the daemon's log; a grader or a model of this size may be too slow here")
            if not (chunk := os.read(self._stdout, _CHUNK)):
                return
            *lines, rest = (rest + chunk).split(b"\n")
            for line in lines:
                event = json.loads(line)
                if event["event"] != worker.ALIVE:
                    yield event

    def send(self, command: str) -> None:
        with self._lock, suppress(OSError):
            if self._early is None:
                os.write(self._stdin, command.encode() + b"\n")
            else:
                self._early.append(command)

    def stop(self) -> None:
        with suppress(RuntimeError):  # it was started before
            self._killer.start()
        self.send("stop")

    def kill(self) -> None:
        with self._lock:
            if self._process.returncode is None:
                self._process.kill()

    def wait(self) -> int:
        code = self._process.wait()
        self._killer.cancel()
        with self._lock:
            self._process.stdin.close()  # type: ignore[union-attr]
            self._stdin = -1
        self._process.stdout.close()  # type: ignore[union-attr]
        return code
