"""A command in a terminal of a given size: what a person sees of it, and what they type. pyte is the terminal.

`InTerminal` is one that a test can close.
"""

from __future__ import annotations

import fcntl
import os
import pty
import select
import signal
import subprocess
import sys
import termios
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

import pexpect
import pyte

PATIENCE = 30.0  # seconds
CODE = "from edgetune.cli import main; main()"


class Screen:
    """The screen of a command that runs. `history` and the screen itself are `lines`."""

    def __init__(self, child: pexpect.spawn, columns: int, rows: int) -> None:
        self.child = child
        self.screen = pyte.HistoryScreen(columns, rows, history=1000)
        self.stream = pyte.Stream(self.screen)

    @property
    def lines(self) -> list[str]:
        """What was and is on the screen, without spaces at the ends of lines and empty lines at the end."""
        columns = range(self.screen.columns)
        gone = ["".join(row[x].data for x in columns) for row in self.screen.history.top]
        return "\n".join(line.rstrip() for line in [*gone, *self.screen.display]).rstrip("\n").split("\n")

    @property
    def text(self) -> str:
        return "\n".join(self.lines)

    def read(self) -> None:
        """What the command has printed by now."""
        with suppress(pexpect.TIMEOUT, pexpect.EOF):
            while True:
                self.stream.feed(self.child.read_nonblocking(1 << 16, timeout=0.05))

    def wait(self, shown: str | Callable[[str], object], times: int = 1) -> str:
        """Until this text is on the screen `times` times, or this is true of what is; what is there then."""
        until = time.monotonic() + PATIENCE
        while time.monotonic() < until:
            self.read()
            text = self.text
            if text.count(shown) >= times if isinstance(shown, str) else shown(text):
                return text
        raise AssertionError(f"not on the screen: {shown}\n{self.text}")

    def type(self, keys: str) -> None:
        self.child.send(keys)

    def end(self) -> int:
        """Wait for the command to end; its exit code."""
        until = time.monotonic() + PATIENCE
        while self.child.isalive() and time.monotonic() < until:
            self.read()
        self.read()
        self.child.close()
        return int(self.child.exitstatus if self.child.exitstatus is not None else -self.child.signalstatus)


@contextmanager
def screen(*args: object, columns: int = 80, rows: int = 24, **environment: str) -> Iterator[Screen]:
    """`edgetune` with these arguments; it is ended at the end."""
    known = {**os.environ, "TERM": "xterm-256color", **environment}
    child = pexpect.spawn(sys.executable, ["-c", CODE, *map(str, args)], env=known, dimensions=(rows, columns),
                          encoding="utf-8", timeout=PATIENCE)
    child.delaybeforesend = None
    try:
        yield Screen(child, columns, rows)
    finally:
        child.close(force=True)


# ---- a terminal that a test can close --------------------------------------------------------------------------------


def _as_in_a_terminal() -> None:
    """Takes standard input as its terminal. A signal that was ignored where the tests run (nohup) is not here."""
    signal.signal(signal.SIGHUP, signal.SIG_DFL)
    fcntl.ioctl(0, termios.TIOCSCTTY, 0)


class InTerminal:
    """said: what the command has written."""

    def __init__(self, words: Sequence[object], folder: Path, end: int, inside: int) -> None:
        self.said = b""
        self._end = end
        self._closing = threading.Event()
        self.process = subprocess.Popen(
            [str(word) for word in words], cwd=folder, stdin=inside, stdout=inside, stderr=inside,
            start_new_session=True, preexec_fn=_as_in_a_terminal)
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def _read(self) -> None:
        with suppress(OSError):  # nothing has it open any more
            while not self._closing.is_set():
                if select.select([self._end], [], [], 0.05)[0]:
                    self.said += os.read(self._end, 1 << 12)

    def close(self) -> None:
        """Closes the terminal, as a window that is closed, or a connection that is lost."""
        if not self._closing.is_set():
            self._closing.set()
            self._reader.join()  # as long as it reads the kernel keeps the terminal
            os.close(self._end)


@contextmanager
def in_terminal(words: Sequence[object], folder: Path) -> Iterator[InTerminal]:
    end, inside = pty.openpty()
    running = InTerminal(words, folder, end, inside)
    os.close(inside)
    try:
        yield running
    finally:
        running.process.kill()
        running.process.wait()
        running.close()
