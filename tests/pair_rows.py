"""A parser of rows that no other file knows: a prompt with a better and a worse answer, which belong together."""

from collections.abc import Iterable, Mapping
from dataclasses import replace
from typing import Any

from edgetune.data import rows
from edgetune.data.packing import Example
from edgetune.errors import DataError

EXPECTED = "prompt with better and worse"


def shape_of(row: Any) -> str:
    if not isinstance(row, Mapping) or set(row) != {"prompt", "better", "worse"}:
        raise DataError("the row is no pair", f"expected is {EXPECTED}")
    return "pair"


def check_learnable(row: Any) -> str:
    shape = shape_of(row)
    if not row["better"].strip():
        raise DataError("the better answer is empty", "write it")
    return shape


def examples_of(row: Any, _shape: str, *options: Any) -> Iterable[Example]:
    for key in ("better", "worse"):
        answered = {"prompt": row["prompt"], "completion": row[key]}
        yield from (replace(e, group=1) for e in rows.examples_of(answered, "prompt", *options))
