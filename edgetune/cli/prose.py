"""Prints text that comes in pieces, wrapped between words and without a terminal's control characters."""

from __future__ import annotations

from rich.cells import cell_len
from rich.console import Console

from ..errors import CONTROLS

FENCE = "```"


class Prose:
    """Prints pieces of text: on a terminal wrapped at its width, to a file or pipe as they come.

    A word is held back until it ends, so that it need not be taken back. Lines between fences are code, and stay whole.
    """

    def __init__(self, console: Console) -> None:
        self.console = console
        self.column = 0
        self._gap = ""  # spaces that are printed only if a word follows on this line
        self._word = ""
        self._line = ""
        self._code = False

    def write(self, piece: str) -> None:
        if not self.console.is_terminal:
            self._print(piece)
            return
        for c in piece:
            if c == "\n":
                self._end_line()
            elif c in " \t":
                self._end_word()
                self._gap += " " if c == " " else "    "
                self._line += " "
            elif not CONTROLS.match(c):
                self._word += c
                self._line += c
                if cell_len(c) > 1 or cell_len(self._word) >= self.console.width:  # no spaces between words like these
                    self._end_word()
        self._flush()

    def end(self) -> None:
        """The rest, and the end of the line unless nothing is on it."""
        self._end_word()
        if self.column or not self.console.is_terminal:
            self._print("\n")
        self.column = 0
        self._flush()

    def _end_line(self) -> None:
        self._end_word()
        if self._line.lstrip().startswith(FENCE):
            self._code = not self._code
        self._line = ""
        self._gap = ""
        self._print("\n")
        self.column = 0

    def _end_word(self) -> None:
        if not self._word:
            return
        width = cell_len(self._word)
        if self.column and not self._code and self.column + len(self._gap) + width > self.console.width:
            self._print("\n")
            self.column = 0
            self._gap = ""
        self._print(self._gap + self._word)
        self.column += len(self._gap) + width
        self._gap = ""
        self._word = ""

    def _print(self, text: str) -> None:
        self.console.file.write(text)

    def _flush(self) -> None:
        self.console.file.flush()
