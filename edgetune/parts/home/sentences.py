"""Files of sentences, each with what else a reader wants of its row."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from ...data.files import read_rows
from ...data.yaml_text import HALF_PAIR
from ...errors import DataError

Sentence = tuple[str, dict[str, Any]]
"""Words for the place of a row, and the row."""


def read_sentences(path: str | Path) -> Iterator[Sentence]:
    """The rows of a file, each with a `sentence`, and words for their places. Raises DataError for another row."""
    for line, row in read_rows(Path(path)):
        place = f"line {line} of {path}"
        if not isinstance(row, Mapping) or not isinstance(row.get("sentence"), str) or not row["sentence"].strip():
            raise DataError(f"{place} has no sentence", 'write {"sentence": "turn on the lamp"}')
        if HALF_PAIR.search(row["sentence"]):
            raise DataError(f"{place} has half a pair of surrogates in its sentence", "write it as UTF-8")
        yield place, dict(row)
