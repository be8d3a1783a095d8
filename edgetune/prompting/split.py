"""The rows of a search in three parts: examples, rows that choose a prompt, and rows that decide about it.

Those that decide are the ones that `edgetune train` holds out of the same file, so that both say the same of it.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass

from ..data.holdout import divide
from ..data.question import question_text
from ..data.rows import Row
from ..errors import DataError
from .options import PromptOptions

SHARE = 4  # one in four rows that do not decide chooses, at most
LEAST = 4  # rows of each part


@dataclass(frozen=True)
class Parts:
    """pool: rows that may be examples. select: rows that choose. decide: rows that decide."""

    pool: list[Row]
    select: list[Row]
    decide: list[Row]


def split(rows: Sequence[Row], held_out: Sequence[Row] | None, options: PromptOptions) -> Parts:
    """held_out: the rows that decide; None: a tenth of the rows, as training holds them out. No question is in two
    parts. Raises DataError for too few rows.
    """
    learned, decide = divide(rows) if held_out is None else (list(rows), list(held_out))
    known = {question_text(row).strip() for row in decide}
    left = [row for row in learned if question_text(row).strip() not in known]
    chance = random.Random(f"{options.seed} split")
    chance.shuffle(left)
    count = min(options.select, len(left) // SHARE)
    select = left[:count]
    asked = {question_text(row).strip() for row in select}
    pool = [row for row in left[count:] if question_text(row).strip() not in asked]
    for name, part in (("to choose a prompt", select), ("to decide about it", decide), ("for examples", pool)):
        if len(part) < LEAST:
            raise DataError(f"{len(rows)} rows leave {len(part)} {name}, {LEAST} is the least",
                            "give 40 rows or more, or name rows that decide with --eval")
    chance.shuffle(decide)
    return Parts(pool, select, decide[:options.decide])
