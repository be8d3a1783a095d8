"""Lines that a person types: edited, completed and remembered by readline where Python has it."""

from __future__ import annotations

import os
from collections.abc import Sequence
from contextlib import suppress
from functools import partial
from pathlib import Path
from types import ModuleType

from ..disk import private_folder, state_folder
from ..errors import DiskError

LONGEST = 1000  # lines of the history
readline: ModuleType | None
try:
    import readline
except ImportError:  # a Python without it: lines cannot be edited
    readline = None


def history_file() -> Path:
    return state_folder() / "chat_history"


class TypedLines:
    """Reads lines from the terminal. The history is a file that only its owner may read; None: no history.

    words: the completions of a line's first word by Tab.
    """

    def __init__(self, history: Path | None, words: Sequence[str]) -> None:
        self.history = history
        self.words = words
        if readline is None:
            return
        readline.set_completer(self._complete)
        readline.set_completer_delims(" ")
        readline.parse_and_bind("tab: complete")
        readline.set_history_length(LONGEST)
        readline.set_auto_history(False)
        if history is not None:
            self._open(history)

    def ask(self, prompt: str, text: str = "") -> str:
        """A line, which begins as `text`. Raises EOFError for Ctrl-D and KeyboardInterrupt for Ctrl-C."""
        if readline is None:
            return input(prompt)
        readline.set_startup_hook(partial(readline.insert_text, text))
        try:
            line = input(f"\001\033[1;32m\002{prompt}\001\033[0m\002" if "NO_COLOR" not in os.environ else prompt)
        finally:
            readline.set_startup_hook(None)
        if line.strip():
            readline.add_history(line)
            if self.history is not None:
                with suppress(OSError):
                    readline.append_history_file(1, self.history)
        return line

    def _open(self, history: Path) -> None:
        """A history that cannot be read or kept is none: a chat needs no disk."""
        assert readline is not None
        try:
            private_folder(history.parent)
            os.close(os.open(history, os.O_CREAT | os.O_WRONLY, 0o600))
            history.chmod(0o600)
            readline.read_history_file(history)
        except (OSError, DiskError):
            self.history = None

    def _complete(self, text: str, state: int) -> str | None:
        """Completes a command at the beginning of a line, and a path after it."""
        if readline is None:
            return None
        found = self.words if readline.get_begidx() == 0 else _files(text)
        matching = [word for word in found if word.startswith(text)]
        return matching[state] if state < len(matching) else None


def _files(text: str) -> list[str]:
    """The paths in the folder that a path names so far."""
    folder = text[:text.rfind("/") + 1]  # as it was typed
    with suppress(OSError):
        return sorted(f"{folder}{each.name}{'/' if each.is_dir() else ''}" for each in Path(folder or ".").iterdir())
    return []
