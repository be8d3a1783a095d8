"""Which rows of a data set are held out, where no file of held-out rows is given: a tenth, by digests of questions.

The division is a pure function of the rows. It does not depend on their order, and all rows that ask the same are on
one side, so that no held-out question has been learned.
"""

from __future__ import annotations

import hashlib
from collections import defaultdict
from collections.abc import Sequence

from .question import canonical, question_digest
from .rows import Row

SHARE = 10  # one in ten rows is held out
LEAST = 4  # rows, where there are enough
MOST = 256  # rows: measuring more takes long
FEW = 16  # of fewer rows than this one in four is held out; of fewer than LEAST none


def held_out_count(rows: int) -> int:
    """The number of rows to hold out of this number."""
    if rows < LEAST:
        return 0
    if rows < FEW:
        return rows // 4
    return min(max(rows // SHARE, LEAST), MOST)


def held_out_indices(rows: Sequence[Row]) -> set[int]:
    """The indices of the held-out rows: of the questions with the lowest digests, at most `held_out_count(len(rows))`
    rows. A question that more rows ask than may still be held out is learned. Empty where all rows ask the same.
    """
    return indices_by_name([question_digest(row) for row in rows])


def indices_by_name(names: Sequence[str]) -> set[int]:
    """The same of rows whose questions have these names (`question_digest`)."""
    asking: dict[str, list[int]] = defaultdict(list)
    for i, name in enumerate(names):
        asking[name].append(i)
    left = held_out_count(len(names))
    chosen: set[int] = set()
    for name in sorted(asking):
        if len(asking[name]) <= left:
            chosen.update(asking[name])
            left -= len(asking[name])
    return chosen


def divide(rows: Sequence[Row]) -> tuple[list[Row], list[Row]]:
    """(rows to learn, rows held out), each in their order. Raises DataError for rows that JSON cannot hold."""
    chosen = held_out_indices(rows)
    learned = [row for i, row in enumerate(rows) if i not in chosen]
    return learned, [rows[i] for i in sorted(chosen)]


def digest_of(rows: Sequence[Row]) -> str:
    """The sha256 of rows in their order, whatever the order of their keys."""
    written = "\n".join(canonical(row) for row in rows)
    return f"sha256:{hashlib.sha256(written.encode()).hexdigest()}"
