"""Rows of Parquet files, by pyarrow. Values that JSON does not have, such as images, and null are left out."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, BinaryIO

from ..errors import DataError, install_hint, lacking
from .rows import Row

AT_ONCE = 256  # rows


def rows_of(file: BinaryIO, name: str) -> Iterator[tuple[int, Row]]:
    """(number, row) of each row of a Parquet file. Raises DataError."""
    try:
        from pyarrow import ArrowException
        from pyarrow.parquet import ParquetFile
    except ImportError as error:
        raise lacking(error) or DataError(f"{name} is Parquet, and pyarrow, which reads it, is not installed",
                        install_hint("parquet")) from None
    number = 0
    try:
        with ParquetFile(file) as table:
            for batch in table.iter_batches(AT_ONCE, use_threads=False):
                for row in batch.to_pylist():
                    number += 1
                    yield number, _json(row)
    except (ArrowException, OSError) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise DataError(f"{name} cannot be read as Parquet ({reason:.200})", "write it again, or as lines of JSON") \
            from None


def _json(value: Any) -> Any:
    """The parts of a value that JSON has."""
    if isinstance(value, dict):
        parts = {key: _json(part) for key, part in value.items()}
        return {key: part for key, part in parts.items() if part is not None}
    if isinstance(value, list):
        return [_json(part) for part in value]
    return value if isinstance(value, str | int | float | bool) else None
