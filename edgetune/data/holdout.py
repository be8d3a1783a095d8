"""Which rows of a data set are held out, where no file of held-out rows is given: a tenth, by digests of questions.

The division is a pure function of the rows. It does not depend on their order, and all rows that ask the same are on
one side, so that no held-out question has been learned.
"""

from __future__ import annotations

import hashlib
import json
from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import Any

from ..errors import DataError
from .preferences import is_pair
from .preferences import question_of as preferred
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
    return indices_by_name([name_of_question(row) for row in rows])


def indices_by_name(names: Sequence[str]) -> set[int]:
    """The same of rows whose questions have these names (`name_of_question`)."""
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


def name_of_question(row: Row) -> str:
    """64 hexadecimal digits, equal for rows that ask the same.

    Raises DataError for what JSON cannot hold, and a pair without a prompt.
    """
    return hashlib.sha256(canonical(question_of(row)).encode()).hexdigest()


def question_of(row: Row) -> Any:
    """What a row asks: the messages before the last answer, or the prompt; the row itself where it asks nothing."""
    if not isinstance(row, Mapping):
        return row
    if is_pair(row):
        return preferred(row)
    messages = row.get("messages")
    if isinstance(messages, list):
        answers = [i for i, message in enumerate(messages)
                   if isinstance(message, Mapping) and message.get("role") == "assistant"]
        return messages[:answers[-1]] if answers else messages
    prompt = row.get("prompt")
    return prompt if (isinstance(prompt, str) and prompt.strip()) or (isinstance(prompt, list) and prompt) else row


def canonical(value: Any) -> str:
    """JSON in which equal values are equal text. Raises DataError for what JSON cannot hold."""
    try:
        return json.dumps(value, sort_keys=True)
    except (TypeError, ValueError, RecursionError) as error:
        raise DataError(f"the rows are not what JSON can hold ({error})", "use str, numbers, lists and dicts") from None


def digest_of(rows: Sequence[Row]) -> str:
    """The sha256 of rows in their order, whatever the order of their keys."""
    written = "\n".join(canonical(row) for row in rows)
    return f"sha256:{hashlib.sha256(written.encode()).hexdigest()}"
