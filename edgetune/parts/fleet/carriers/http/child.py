"""A fleet's daemon asked from a separate process, which ends before a training begins.

HTTP and signatures take 12 MiB of a process, which a small board needs for the training.
"""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from .....errors import UnansweredError, found_in
from .....python_child import child, how_it_ended

MODULE = f"{__package__}.client"  # by its name: it loads what this process shall not


class RoundsInChild:
    """The process that asks the daemon at a URL, by calls of RoundServer. key_file, device: as of
    open_lead.
    """

    def __init__(self, url: str, key_file: Path | None, device: str) -> None:
        self._begin = {"url": url, "key_file": str(key_file or ""), "device": device, "parent": os.getpid()}
        self._process: subprocess.Popen[str] | None = None

    def round(self, device: str, known: str) -> tuple[Mapping[str, Any], str] | None:
        found = self._ask(call="round", device=device, known=known)
        return None if found is None else (found[0], found[1])

    def load(self, number: int, file: str, target: Path, most: int) -> None:
        self._ask(call="load", number=number, file=file, target=str(target), most=most)

    def send(self, number: int, device: str, folder: Path) -> None:
        self._ask(call="send", number=number, device=device, folder=str(folder))

    def rest(self) -> None:
        """Ends the process; the next call starts another."""
        if self._process is not None:
            ended = self._process
            self._process = None
            ended.kill()
            with suppress(BrokenPipeError):  # it had not read all
                ended.__exit__(None, None, None)  # waits, and closes the pipes

    def __enter__(self) -> RoundsInChild:
        return self

    def __exit__(self, *_: object) -> None:
        self.rest()

    def _ask(self, **call: Any) -> Any:
        """Returns what a call found. Raises its error, and UnansweredError if the process has ended."""
        if self._process is None:
            self._process = subprocess.Popen(**child(MODULE), text=True, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
            self._write(self._begin)
        self._write(call)
        assert self._process.stdout
        line = self._process.stdout.readline()
        if not line:
            ended = how_it_ended(self._process.wait())
            self.rest()
            raise UnansweredError(f"the process that asks the daemon has ended: {ended}", "try again")
        return found_in(json.loads(line))

    def _write(self, message: Mapping[str, Any]) -> None:
        assert self._process
        assert self._process.stdin
        try:
            self._process.stdin.write(json.dumps(message) + "\n")
            self._process.stdin.flush()
        except BrokenPipeError:
            pass  # it has ended, which is found when it does not reply
