"""A command in a terminal of its own, which a test can close."""

from __future__ import annotations

import fcntl
import os
import pty
import select
import signal
import subprocess
import termios
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path


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
