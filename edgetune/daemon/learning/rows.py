"""Feedback as a row of data: made from a person's feedback on an answer, checked, and read back from the database."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any, Literal

from ...data.around import unlearned
from ...data.calls import check_calls
from ...data.rows import check_row
from ...errors import DataError, TooLargeError, UsageError
from ..state.database import now

Rating = Literal["up", "down"]
Row = dict[str, Any]
LARGEST = 256 << 10  # bytes of a piece of feedback with its conversation, as JSON
LONGEST = 10 * 366 * 86_400  # seconds until a piece expires


def make_row(messages: Sequence[Mapping[str, Any]] | None, prompt: str | None, answer: str,
             tools: Sequence[Mapping[str, Any]] | None) -> Row:
    """Makes the row that teaches `answer`. Earlier answers of the conversation have weight 0: nobody confirmed them.

    Raises UsageError unless there is either a conversation or a prompt, DataError where it is malformed, or where the
    answer calls what the tools do not take.
    """
    if (messages is None) == (prompt is None):
        raise UsageError("neither messages nor a prompt are given, or both", "give one of them")
    row: Row = {"prompt": prompt, "completion": answer}
    if messages is not None:
        row = {"messages": [*unlearned(messages), {"role": "assistant", "content": answer}]}
        if tools:
            row["tools"] = [*tools]
            check_calls("the answer", row["messages"][-1], row["tools"])
    check_row(row)
    return row


def read_row(text: str) -> Row:
    """Reads a stored row. Raises ValueError, DataError or RecursionError where it cannot be read."""
    row: Row = json.loads(text)
    if check_row(row) not in ("messages", "prompt"):
        raise ValueError("no row of messages, or of prompt and completion")
    return row


def answer_of(row: Row) -> str:
    if "messages" in row:
        return str(row["messages"][-1]["content"])
    return str(row["completion"])


def with_answer(row: Row, answer: str) -> Row:
    """Returns the row with another last answer."""
    if "messages" in row:
        return {**row, "messages": [*row["messages"][:-1], {**row["messages"][-1], "content": answer}]}
    return {**row, "completion": answer}


def check_rating(answer: str, rating: Rating | None, correction: str | None, rejected: str | None) -> Rating | None:
    """Returns the rating: up for a better answer. Raises UsageError for empty or contradictory feedback."""
    if rating not in (None, "up", "down"):
        raise UsageError(f"rating is {rating!r:.40}", "use 'up' or 'down'")
    if rejected is not None:
        return _check_better(answer, rating, correction, rejected)
    if rating is None and correction is None:
        raise UsageError("neither rating nor correction is given", "give one of them")
    is_same = correction is not None and correction.strip() == answer.strip()
    if rating == "up" and correction is not None and not is_same:
        raise UsageError("the rating is 'up', and the correction is another answer", "leave one of them out")
    if rating == "down" and is_same:
        raise UsageError("the rating is 'down', and the correction is the same answer",
                         "write what is right, or leave one of them out")
    return rating


def _check_better(answer: str, rating: Rating | None, correction: str | None, rejected: str) -> Rating:
    if rating == "down" or correction is not None:
        raise UsageError("an answer is rejected for a better one, which is rated 'down' or corrected",
                         "leave rejected out, or the other")
    if rejected.strip() == answer.strip():
        raise UsageError("the answer and the rejected one are the same", "give two that differ")
    return "up"


def expiry(seconds: int | None) -> int | None:
    """Returns when an answer expires that is right for this number of seconds; None: never. Raises UsageError."""
    if seconds is None:
        return None
    if not 1 <= seconds <= LONGEST:
        raise UsageError(f"expires_in is {seconds} seconds", f"choose from 1 to {LONGEST}, or leave it out")
    return now() + seconds


def check_size(*given: Any) -> None:
    """Checks the size of all parts of a piece of feedback together. Raises TooLargeError, and DataError for values that
    JSON cannot hold.

    JSON may hold half a surrogate pair, which neither a tokenizer nor SQLite accepts.
    """
    try:
        size = len(json.dumps(given, ensure_ascii=False).encode())
    except UnicodeEncodeError:
        raise DataError("a text holds half a surrogate pair, which is no character", "send whole ones") from None
    except (TypeError, ValueError, RecursionError) as error:
        raise DataError(f"the feedback is not what JSON can hold ({error})",
                        "use str, numbers, lists and dicts") from None
    if size > LARGEST:
        raise TooLargeError(f"the feedback has {size} bytes, at most {LARGEST} are kept",
                            "send a shorter conversation: training reads far less of a row")
