"""A shell in tmux, whose screen is read: what a person sees of a command in a terminal of a given size."""

from __future__ import annotations

import os
import random
import re
import shutil
import string
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

HOME = "/home/pi"  # what the home of a terminal is called in a capture
PATIENCE = 900  # seconds
ENDED = r"^\$ ?\Z"  # a shell that waits


class Terminal:
    """Its shell finds edgetune alone, and has `home` as HOME and current folder."""

    def __init__(self, home: Path, columns: int, rows: int, **environment: str) -> None:
        self.home = home
        self.server = ["tmux", "-L", f"captures-{os.getpid()}-{home.name}", "-f", "/dev/null"]
        known = {"PATH": home / "bin", "HOME": home, "PS1": "$ ", "TERM": "screen-256color", "LANG": "C.UTF-8",
                 **environment}
        shell = [shutil.which("bash") or "bash", "--noprofile", "--norc"]
        self.tmux("new-session", "-d", "-x", str(columns), "-y", str(rows), "-c", str(home),
                  "env", *(f"{name}={value}" for name, value in known.items()), *shell)
        self.tmux("set", "-g", "status", "off")
        self.wait(ENDED)

    def tmux(self, *args: str) -> str:
        return subprocess.run([*self.server, *args], check=True, capture_output=True, text=True).stdout

    def type(self, line: str) -> None:
        self.tmux("send-keys", "-l", line)
        self.tmux("send-keys", "Enter")

    def press(self, key: str) -> None:
        self.tmux("send-keys", key)

    def text(self, history: bool = True) -> str:
        """The screen, below what has left it at its top, without spaces at the ends of lines."""
        lines = self.tmux("capture-pane", "-p", *(["-S", "-"] if history else [])).rstrip().split("\n")
        return "\n".join(line.rstrip() for line in lines).replace(str(self.home), HOME)

    def clear(self) -> None:
        """Leaves the shell's prompt alone, and forgets what has left the screen."""
        self.press("C-l")
        self.wait(rf"\A{ENDED[1:]}", history=False)
        self.tmux("clear-history")

    def wait(self, pattern: str, history: bool = True) -> str:
        """Until the text has this pattern; that text."""
        until = time.monotonic() + PATIENCE
        while time.monotonic() < until:
            text = self.text(history)
            if re.search(pattern, text, re.M):
                return text
            time.sleep(1)
        raise TimeoutError(f"{pattern} is not on the screen:\n{self.text()}")

    def run(self, line: str) -> str:
        """A command from where it is typed to where it has ended."""
        self.clear()
        self.type(line)
        text = self.wait(rf"\A\$ \S(.|\n)*{ENDED}")
        return text.removesuffix("$").rstrip()

    def close(self) -> None:
        self.tmux("kill-server")


@contextmanager
def terminal(columns: int, rows: int, **environment: str) -> Iterator[Terminal]:
    """One whose home is thrown away; edgetune is that of this Python."""
    if shutil.which("tmux") is None:
        sys.exit("captures are made with tmux, which is not installed: apt install tmux")
    home = new_home()
    try:
        (home / "bin").mkdir()
        command = home / "bin" / "edgetune"
        command.write_text(f'#!/bin/sh\nexec {sys.executable} -c "from edgetune.cli import main; main()" "$@"\n')
        command.chmod(0o755)
        shown = Terminal(home, columns, rows, **environment)
        try:
            yield shown
        finally:
            shown.close()
    finally:
        shutil.rmtree(home, ignore_errors=True)


def new_home() -> Path:
    """A folder whose name is as long as HOME, so that lines are broken where they would be there."""
    while True:
        letters = len(HOME) - len(tempfile.gettempdir()) - 1
        if letters < 1:
            sys.exit(f"TMPDIR is {tempfile.gettempdir()}, too long for a home as short as {HOME}: TMPDIR=/tmp")
        home = Path(tempfile.gettempdir()) / "".join(random.choices(string.ascii_lowercase, k=letters))
        try:
            home.mkdir(0o700)
        except FileExistsError:
            continue
        return home
