"""Words that occur nowhere else, and the search for them in every file of a folder."""

from __future__ import annotations

import re
from collections import defaultdict
from pathlib import Path

MARK = re.compile(rb"zq[0-9a-f]{8}")


def mark_of(number: int) -> str:
    return f"zq{number:08x}"


def marks_in(content: bytes) -> set[str]:
    return {found.decode() for found in set(MARK.findall(content))}


def marks_below(folder: Path) -> dict[str, set[str]]:
    """The files below `folder` that hold each mark, in their bytes or names, by their paths within it."""
    found: dict[str, set[str]] = defaultdict(set)
    for path in folder.rglob("*"):
        name = str(path.relative_to(folder))
        content = name.encode() + (b"\n" + path.read_bytes() if path.is_file() else b"")
        for mark in marks_in(content):
            found[mark].add(name)
    return found
