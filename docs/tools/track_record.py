"""The table of docs/development/track-record.md, from track-record.toml beside it."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

FILE = Path(__file__).parents[1] / "development" / "track-record.toml"


def defects() -> list[dict[str, Any]]:
    """Returns the defects, the oldest first: what, since, found, and test or open (why it is not mended)."""
    found: list[dict[str, Any]] = tomllib.loads(FILE.read_text("utf-8"))["defect"]
    return sorted(found, key=lambda defect: defect["since"])


def lines() -> Iterator[str]:
    yield from ("| what was wrong | since | found by | test |", "|---|---|---|---|")
    for defect in defects():
        test = f"`{defect['test']}`" if "test" in defect else f"**open**: {defect['open']}"
        yield f"| {defect['what']} | {defect['since']} | {defect['found']} | {test} |".replace("\n", " ")
