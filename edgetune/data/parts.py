"""The files that DATA names: a file, several between commas, a folder of files, or a data set of the hub.

All of them are read as if they were one file, in this order; a file or folder of the whole name comes first.
"""

from __future__ import annotations

import os
from pathlib import Path

from ..errors import DataError
from . import hub_rows

STDIN = "-"  # the name by which rows are read from standard input
SUFFIXES = (".jsonl", ".json", ".csv", ".tsv", ".txt", ".parquet")
TEST_NAMES = ("valid", "validation", "val", "dev", "test", "eval")  # stems of files that are not learned


def names_of(path: Path) -> list[str]:
    """The names between commas."""
    text = str(path)
    if os.path.lexists(text):
        return [text]
    return [name.strip() for name in text.split(",") if name.strip()]


def parts_of(path: Path) -> list[Path]:
    """The files that hold the rows; those of the hub are downloaded, unless they are in the cache. Raises DataError."""
    names = names_of(path)
    if STDIN in names and len(names) > 1:
        raise DataError(f"{path} names standard input and other files", "write its rows to a file")
    return [file for name in names for file in _files(name)]


def absolute(path: Path) -> str:
    """The names, such that they can be opened from any folder."""
    return ",".join(name if name == STDIN or hub_rows.is_name(name) else str(Path(name).absolute())
                    for name in names_of(path))


def title_of(path: Path) -> str:
    """A short name of all of it, for sentences."""
    names = names_of(path)
    return Path(names[0]).name if len(names) == 1 and not hub_rows.is_name(names[0]) else str(path)


def _files(name: str) -> list[Path]:
    if hub_rows.is_name(name):
        return hub_rows.fetched(name)
    path = Path(name)
    if not path.is_dir():
        return [path]
    found = sorted(file for file in path.iterdir() if file.suffix.lower() in SUFFIXES)
    if not found:
        raise DataError(f"the folder {path} has no files of rows", f"it may have {', '.join(SUFFIXES)}")
    if aside := [file.name for file in found if file.stem.lower() in TEST_NAMES]:
        names = ", ".join(file.name for file in found)
        raise DataError(f"the folder {path} has {names}, not all of which are to learn",
                        f"name the files: the rows to learn as DATA, and --eval {path / aside[0]}")
    return found
