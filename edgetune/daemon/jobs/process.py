"""A job's process seen from its parent: events come as dicts, sending a command does not block."""

from __future__ import annotations

import json
import os
import subprocess
import threading
from collections.abc import Iterator
from contextlib import suppress
from typing import Any

from ...python_child import child
from . import worker

STOP_SECONDS = 60.0  # that saving may take before the process is killed


class WorkerProcess:
    """Starts worker.py with a task. It is for the thread that makes it, which also has to wait for it: the kernel ends
    the process with that thread. `send`, `stop` and `kill` are for any thread.
    """

    def __init__(self, task: dict[str, Any]) -> None:
        self._process = subprocess.Popen(**child(worker.__name__), text=True, stdin=subprocess.PIPE,
                                         stdout=subprocess.PIPE, start_new_session=True)
        self.pid = self._process.pid
        self._lock = threading.Lock()
        self._killer = threading.Timer(STOP_SECONDS, self.kill)
        self._killer.daemon = True
        assert self._process.stdin
        self._stdin = self._process.stdin.fileno()
        with suppress(BrokenPipeError):
            os.write(self._stdin, json.dumps({**task, "parent": os.getpid()}).encode() + b"\n")
        os.set_blocking(self._stdin, False)

    def events(self) -> Iterator[dict[str, Any]]:
        """Until it ends."""
        assert self._process.stdout
        for line in self._process.stdout:
            with suppress(ValueError):  # a last line that was cut off
                yield json.loads(line)

    def send(self, command: str) -> None:
        """busy, free or stop. One that is not read, and so does not arrive, is not needed either."""
        with self._lock, suppress(OSError):
            os.write(self._stdin, command.encode() + b"\n")

    def stop(self) -> None:
        """Let it save and end; after STOP_SECONDS it is killed."""
        with suppress(RuntimeError):  # it was started before
            self._killer.start()
        self.send("stop")

    def kill(self) -> None:
        """At once: what it has saved is complete."""
        with self._lock:
            if self._process.returncode is None:
                self._process.kill()

    def wait(self) -> int:
        """Its exit code, negative for a signal; closes the pipes."""
        code = self._process.wait()
        self._killer.cancel()
        with self._lock:
            self._process.stdin.close()  # type: ignore[union-attr]
            self._stdin = -1
        self._process.stdout.close()  # type: ignore[union-attr]
        return code
