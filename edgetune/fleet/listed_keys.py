"""A file of keys that people write: one a line; what follows # is for people."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from ..disk import read_small
from ..errors import UsageError


def listed_keys(path: Path, hint: str) -> Iterator[tuple[int, list[str]]]:
    """Yields the number and the words of each line that has some. Raises UsageError where the file cannot be read."""
    try:
        lines = read_small(path).decode("utf-8", "replace").splitlines()
    except OSError as error:
        raise UsageError(f"cannot read {path}: {error.strerror}", hint) from None
    for number, line in enumerate(lines, 1):
        words = line.partition("#")[0].split()
        if words:
            yield number, words
