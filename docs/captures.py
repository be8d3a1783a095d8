"""Puts what a terminal shows into docs/terminal.md, below each `<!-- capture NAME COLUMNSxROWS -->`.

`make captures` runs it. It needs tmux and the demonstration's model (pip install '.[demo,daemon]'), and some minutes.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory

from edgetune.formats.named import packaged_model

PAGE = Path(__file__).parent / "terminal.md"
PLACE = re.compile(r"<!-- capture (\w+) (\d+)x(\d+) -->\n(?:```text\n.*?```\n)?", re.S)
PATIENCE = 120  # seconds
PORT = 8731


class Terminal:
    """A shell in tmux, in a folder that holds model.gguf and rows.jsonl."""

    def __init__(self, folder: Path, columns: int, rows: int) -> None:
        self.server = ["tmux", "-L", f"captures-{os.getpid()}", "-f", "/dev/null"]
        self.tmux("new-session", "-d", "-x", str(columns), "-y", str(rows), "-c", str(folder),
                  "bash --noprofile --norc")
        self.tmux("set", "-g", "status", "off")
        self.wait(r"^.*[$#] ?$")  # what is typed before the shell reads would be shown twice
        self.type(f"export PATH={folder}:$PATH XDG_STATE_HOME={folder}/state EDGETUNE_URL=http://127.0.0.1:{PORT} "
                  "PS1='$ '; clear")
        self.wait(r"^\$ ?$")

    def tmux(self, *args: str) -> str:
        return subprocess.run([*self.server, *args], check=True, capture_output=True, text=True).stdout

    def type(self, line: str) -> None:
        self.tmux("send-keys", "-l", line)
        self.tmux("send-keys", "Enter")

    def press(self, key: str) -> None:
        self.tmux("send-keys", key)

    def screen(self) -> str:
        """Lines that the terminal itself has broken are whole."""
        lines = self.tmux("capture-pane", "-pJ").rstrip().split("\n")
        return "".join(f"{line.rstrip()}\n" for line in lines)

    def wait(self, pattern: str) -> str:
        """Until what is on the screen has this pattern."""
        for _ in range(PATIENCE):
            if re.search(pattern, self.screen(), re.M):
                return self.screen()
            time.sleep(1)
        raise TimeoutError(f"{pattern} is not on the screen:\n{self.screen()}")

    def close(self) -> None:
        self.tmux("kill-server")


@contextmanager
def terminal(columns: int, rows: int) -> Iterator[tuple[Terminal, Path]]:
    with TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "model.gguf").symlink_to(packaged_model())
        (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows_to_learn()))
        command = folder / "edgetune"
        command.write_text(f'#!/bin/sh\nexec {sys.executable} -c "from edgetune.cli import main; main()" "$@"\n')
        command.chmod(0o755)
        shown = Terminal(folder, columns, rows)
        try:
            yield shown, folder
        finally:
            shown.close()


def rows_to_learn() -> Iterator[dict[str, str]]:
    for number in range(300):
        device = ("lamp", "fan", "radio", "pump", "heater")[number % 5]
        action = ("on", "off")[number % 2]
        yield {"prompt": f"turn {action} {device} {number}", "completion": json.dumps({device: number, "do": action})}


# ---- what is shown --------------------------------------------------------------------------------------------------


def chat(shown: Terminal, _folder: Path) -> str:
    shown.type("clear; edgetune chat model.gguf --max-tokens 60")
    shown.wait(r"^>$")
    shown.type("What is a pump for?")
    shown.wait(r"the first after")
    shown.type("/fix It moves water.")
    shown.wait(r"kept in")
    shown.press("C-d")
    return shown.wait(r"^to learn: (.|\n)*^\$ ?$")


def train(shown: Terminal, folder: Path) -> str:
    shown.type("clear; edgetune train model.gguf rows.jsonl -o lamps --busy-file busy")
    shown.wait(r"^step ([3-9]|\d\d)/\d+ ")
    (folder / "busy").touch()
    text = shown.wait(r"^paused: ")
    shown.press("C-c")
    shown.wait(r"^\$ ?$")
    return text


def doctor(shown: Terminal, _folder: Path) -> str:
    shown.type("clear; edgetune doctor")
    return shown.wait(r"eady: (.|\n)*^\$ ?$")


def status(shown: Terminal, _folder: Path) -> str:
    shown.type(f"edgetune daemon model.gguf --port {PORT} > daemon.log 2>&1 & clear")
    shown.type("until edgetune status > first.log 2>&1; do sleep 1; done; clear; edgetune status")
    text = shown.wait(r"^learning")
    shown.press("C-c")
    shown.wait(r"^\$ ?$")
    shown.type("kill %1; wait; clear; echo ended")
    shown.wait(r"^ended")
    return text


SHOWN: dict[str, Callable[[Terminal, Path], str]] = {"chat": chat, "train": train, "doctor": doctor, "status": status}


def capture(place: re.Match[str]) -> str:
    name, columns, rows = place.groups()
    with terminal(int(columns), int(rows)) as (shown, folder):
        text = SHOWN[name](shown, folder).replace(f"{folder}/state", "~/.local/state")
    return f"<!-- capture {name} {columns}x{rows} -->\n```text\n{text.rstrip().removesuffix('$').rstrip()}\n```\n"


def main() -> None:
    if shutil.which("tmux") is None:
        sys.exit("captures are made with tmux, which is not installed: apt install tmux")
    PAGE.write_text(PLACE.sub(capture, PAGE.read_text("utf-8")), encoding="utf-8")


if __name__ == "__main__":
    main()
