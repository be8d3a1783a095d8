"""The rows of a file that have a question and an answer, as they are written, without tokens."""

from __future__ import annotations

from pathlib import Path

from ..errors import DataError
from . import rows as supervised
from .files import place, read_rows
from .formats import BY_KEYS, Columns, recognised
from .rows import Row


def asking_rows(path: Path, columns: Columns = BY_KEYS) -> list[Row]:
    """The rows of a file that have a question and an answer. Raises DataError, which names the line."""
    found = []
    for line, row in read_rows(path):
        try:
            known = recognised(row, (supervised,), columns)
            is_text = supervised.shape_of(known) == "text"
        except DataError as error:
            raise DataError(f"{place(line, path.name)}: {error.what}", error.hint) from None
        if not is_text:
            found.append(known)
    if not found:
        raise DataError(f"{path} has no row with a question and an answer", "name a file of such rows")
    return found
