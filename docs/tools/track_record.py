"""The tables of docs/development/track-record.md, from track-record.toml in its folder."""

from __future__ import annotations

import re
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

FILE = Path(__file__).parents[1] / "development" / "track-record.toml"
FEW = 1  # defects that were found in a way that has no line of its own


def defects() -> list[dict[str, Any]]:
    """Returns the defects, the oldest first: what, since, found, and test or open (why it is not mended)."""
    found: list[dict[str, Any]] = tomllib.loads(FILE.read_text("utf-8"))["defect"]
    return sorted(found, key=lambda defect: defect["since"])


def lines() -> Iterator[str]:
    found = defects()
    ways = Counter(re.split("[:;,]", defect["found"])[0] for defect in found)
    several = {way: count for way, count in ways.most_common() if count > FEW}
    yield from ("| found by | defects |", "|---|---|")
    yield from (f"| {way} | {count} |" for way, count in several.items())
    yield from (f"| other ways | {len(found) - sum(several.values())} |", f"| **all** | {len(found)} |", "",
                "These are open, and why:", "", "| what is wrong | since | why it is open |", "|---|---|---|")
    yield from (f"| {defect['what']} | {defect['since']} | {defect['open']} |" for defect in found if "open" in defect)
