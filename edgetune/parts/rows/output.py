"""What every source returns: rows, how many were dropped and why; and how they are written."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ...data.around import unlearned
from ...data.question import digest
from ...disk import json_lines, refuse_existing, replaced
from ...errors import DataError

Row = dict[str, Any]


@dataclass
class Made:
    """Rows of a source. read: what it looked at, such as records of a log; dropped: of these, by their reason.
    held_out: rows that are not to be learned. notes: what a person should know of the rows, a sentence each.
    """

    read: int = 0
    rows: list[Row] = field(default_factory=list)
    held_out: list[Row] = field(default_factory=list)
    dropped: Counter[str] = field(default_factory=Counter)
    notes: list[str] = field(default_factory=list)

    def drop(self, reason: str) -> None:
        self.dropped[reason] += 1

    def as_json(self) -> dict[str, Any]:
        """The report, without the rows."""
        return {"read": self.read, "rows": len(self.rows), "held_out": len(self.held_out),
                "dropped": dict(self.dropped.most_common()), "notes": self.notes}


def learned_last(messages: Sequence[Row]) -> list[Row]:
    """A conversation of which the last answer alone is learned: the others have weight 0, as nobody confirmed them."""
    return [*unlearned(messages[:-1]), *messages[-1:]]


def without_repeats(made: Made) -> None:
    """Drops rows that an earlier one repeats to the letter."""
    seen: set[str] = set()
    kept = []
    for row in made.rows:
        name = digest(row)
        if name in seen:
            made.drop("repeats an earlier row")
        else:
            kept.append(row)
        seen.add(name)
    made.rows = kept


def write_made(made: Made, to: Path, test: Path | None = None) -> None:
    """Writes the rows, and the held-out ones to `test`: both files, or neither. Raises DataError where there is no row,
    UsageError where a file exists.
    """
    for path in (to, test):
        if path:
            refuse_existing(path)
    if not made.rows:
        why = ", ".join(f"{count} {reason}" for reason, count in made.dropped.most_common()) or "there was nothing"
        raise DataError(f"no row was made of {made.read} read ({why})", "nothing was written; mend what is named")
    with ExitStack() as files:
        for path, rows in ((to, made.rows), (test, made.held_out)):
            if path:
                files.enter_context(replaced(path)).write_text(json_lines(rows), encoding="utf-8")
