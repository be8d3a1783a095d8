"""What a command writes, and what the system refuses of it: standard output that takes no more, files."""

from __future__ import annotations

import errno
import os
import sys
from collections.abc import Callable, Iterable
from contextlib import suppress
from pathlib import Path
from typing import Any, TextIO, cast

import click

from ..disk import FULL, json_text, refuse_existing, replaced
from ..errors import DiskError, DiskFullError, UsageError

DENIED = (errno.EROFS, errno.EACCES, errno.EPERM, errno.EIO)


class OutputLost(Exception):
    """Standard output takes no more. It is no OSError, so that nobody takes it for one of a file."""

    def __init__(self, error: OSError) -> None:
        super().__init__(str(error))
        self.error = error


class Output:
    """Standard output that raises OutputLost. All but writing is done by `stream`."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)

    def write(self, text: str) -> int:
        try:
            return self._stream.write(text)
        except OSError as error:
            raise OutputLost(error) from None

    def flush(self) -> None:
        try:
            self._stream.flush()
        except OSError as error:
            raise OutputLost(error) from None


def to_the_end(command: Callable[[], None], complain: Callable[[str], None]) -> None:
    """Runs a command. If standard output takes no more, it ends with the code 1: quietly if the reader of a pipe has
    ended, else after a sentence.
    """
    if sys.stdout is None:  # it was closed before
        return command()
    stream = sys.stdout
    sys.stdout = cast(TextIO, Output(stream))
    try:
        try:
            command()
        finally:
            sys.stdout.flush()
    except OutputLost as lost:
        os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())  # for what Python writes at its end
        if lost.error.errno != errno.EPIPE:
            with suppress(OSError):  # standard error may be the same
                complain(f"standard output cannot be written: {lost.error.strerror}; make room, or name another place")
        sys.exit(1)


def refusal(error: OSError) -> DiskError | None:
    """An error of the disk as a sentence; None for another."""
    name = error.filename or "a file"
    if error.errno in FULL:
        return DiskFullError(f"{name} cannot be written: {error.strerror}", "make room or choose another place")
    if error.errno in DENIED:
        return DiskError(f"{name} cannot be used: {error.strerror}", "look at its rights, or choose another place")
    if "temporary directory" in (error.strerror or ""):  # of the module tempfile, which tried them all
        return DiskFullError("no folder takes temporary files", "make room, or name another in TMPDIR")
    return None


def new_file(ctx: click.Context, option: click.Parameter, path: Path | None) -> Path | None:
    """Refuses a file that exists or has no folder, before anything is measured. Raises UsageError."""
    if path is not None:
        refuse_existing(path)
    return in_a_folder(ctx, option, path)


def in_a_folder(_ctx: click.Context, _option: click.Parameter, path: Path | None) -> Path | None:
    """Refuses a file that has no folder, as `new_file` does."""
    if path is not None and not path.parent.is_dir():
        raise UsageError(f"save is {path}, there is no folder {path.parent}", "make it first")
    return path


def save_lines(path: Path, lines: Iterable[dict[str, Any]]) -> int:
    """The number of lines, all of which are in the file, or none."""
    text = [json_text(line) + "\n" for line in lines]
    refuse_existing(path)
    with replaced(path) as beside:
        beside.write_text("".join(text), encoding="utf-8")
    return len(text)
