"""Files of sentences, each with what else a reader wants of its row."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from ..data.files import read_rows
from ..errors import DataError


def read_sentences(path: str | Path) -> Iterator[tuple[str, dict[str, Any]]]:
    """The rows of a file, each with a `sentence`, and words for their places. Raises DataError for another row."""
    for line, row in read_rows(Path(path)):
        place = f"line {line} of {path}"
        if not isinstance(row, Mapping) or not isinstance(row.get("sentence"), str) or not row["sentence"].strip():
            raise DataError(f"{place} has no sentence", 'write {"sentence": "turn on the lamp"}')
        yield place, dict(row)
