"""The work of jobs in threads of this process, by worker.py's code, where the process itself is not what is tested: one
takes longer to start than a tiny model to learn.
"""

from __future__ import annotations

import json
import os
import queue
import threading
from collections.abc import Iterator, Mapping
from typing import Any

from edgetune.daemon.jobs.worker import work


class ThreadWorker:
    """A JobProcess, and the commands for its work. Killed, it stops as if it were asked to."""

    def __init__(self) -> None:
        self.pid = os.getpid()
        self._task: dict[str, Any] = {}
        self._code = 0
        self._is_busy = False
        self._is_stopped = False
        self._events: queue.SimpleQueue[dict[str, Any] | None] = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._work, daemon=True)

    def _work(self) -> None:
        try:
            self._code = work(self._task, self, self._events.put)
        except BaseException:
            self._code = 1
            raise
        finally:
            self._events.put(None)

    # ---- for its parent -------------------------------------------------------------------------------------------

    def begin(self, task: Mapping[str, Any]) -> None:
        self._task = json.loads(json.dumps(task))
        self._thread.start()

    def events(self) -> Iterator[dict[str, Any]]:
        while event := self._events.get():
            yield json.loads(json.dumps(event))

    def send(self, command: str) -> None:
        self._is_busy = command == "busy"

    def stop(self) -> None:
        self._is_stopped = True

    def kill(self) -> None:
        self.stop()

    def wait(self) -> int:
        self._thread.join()
        return self._code

    # ---- for its work ---------------------------------------------------------------------------------------------

    def is_busy(self) -> bool:
        return self._is_busy

    def should_stop(self) -> bool:
        return self._is_stopped

    def set_saves(self, whether: bool) -> None:
        """Other work is not broken off where the job is stopped, but done."""
