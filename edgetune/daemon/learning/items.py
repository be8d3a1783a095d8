"""A piece of feedback: its row of data, made from what a person said, and how it is stored and listed."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any, Literal

from ...data.around import unlearned
from ...data.calls import check_calls
from ...data.decisions import check_answer, typed_in
from ...data.question import question_text
from ...data.rows import check_row
from ...errors import DataError, FormatError, TooLargeError, UsageError
from ...persisted import from_json
from ..state.database import now

Rating = Literal["up", "down"]
Row = dict[str, Any]
LARGEST = 256 << 10  # bytes of a piece of feedback with its conversation, as JSON
LONGEST = 10 * 366 * 86_400  # seconds until a piece expires
State = Literal["new", "used", "aside", "withdrawn", "counted"]
SHOWN = 300  # characters of a question and of an answer in a list; an upgrade of the database has the same number
HEADING = f"""id, created_at, rating, model, state, held, job, row IS NOT NULL AND state != 'counted' AS learns, asked,
              answer, substr(rejected, 1, {SHOWN}) AS rejected, expires_at"""  # for a list


@dataclass(frozen=True)
class Heading:
    """A piece of feedback without its row, which may be large. learns: whether there is something to learn. held: it is
    held out and not learned. state: of the row, as in feedback.py; counted: nothing is learned from it. asked, answer:
    the last question and its right answer, SHOWN characters at most; "" where no right answer is known. rejected: the
    wrong, or worse, answer likewise, None where none is known. expires_at: seconds since 1970, from which on it counts
    for nothing; None: never.
    """

    id: str
    created_at: int
    rating: Rating | None
    model: str
    state: State
    held: bool
    job: str | None
    learns: bool
    asked: str | None
    answer: str | None
    rejected: str | None = None
    expires_at: int | None = None

    @property
    def reason(self) -> str:
        """Returns the use of this feedback, in one sentence."""
        if self.expires_at is not None:
            return "has expired" if self.expires_at <= now() else "answers until it expires, and is never learned"
        if self.state == "counted" and self.answer:
            return "waits for another method of learning: that of this daemon does not use it"
        if not self.learns:
            return "nothing to learn: a thumb down says that an answer is wrong, a correction would say what is right"
        if self.state == "withdrawn":
            return "replaced by newer feedback on the same answer"
        if self.state == "aside":
            return f"set aside: what {self.job} learned was found worse" if self.job else "this model cannot learn it"
        if self.held:
            return "held out: it evaluates learning" if self.answer else "held out: its question is never learned"
        if self.state == "used":
            return f"learned by {self.job}"
        return f"is being learned by {self.job}" if self.job else "waits to be learned"


@dataclass(frozen=True)
class FeedbackItem:
    """A piece of feedback. row: the question with its right answer, "" where none is known; None: an earlier version
    kept no row of a thumb down. rejected: the wrong, or worse, answer, or None. held: it is held out and not learned.
    state: of the row, as in feedback.py; counted: nothing is learned from it. question: digest of the question. reason:
    its use, in one sentence. expires_at: as of Heading.
    """

    id: str
    created_at: int
    rating: Rating | None
    model: str
    row: Row | None
    held: bool
    state: State
    job: str | None
    question: str
    rejected: str | None = None
    expires_at: int | None = None

    @property
    def learns(self) -> bool:
        """Returns whether there is something to learn."""
        return self.row is not None and self.state != "counted"

    @property
    def answer(self) -> str:
        """Returns the right answer; "" where none is known."""
        return answer_of(self.row) if self.row else ""

    @property
    def is_choice(self) -> bool:
        """Returns whether a person said which of two answers is better, and not which is right."""
        return self.rating == "up" and self.rejected is not None

    @property
    def heading(self) -> Heading:
        asked, answer = (None, None) if self.row is None else (question_text(self.row)[:SHOWN], self.answer[:SHOWN])
        return Heading(self.id, self.created_at, self.rating, self.model, self.state, self.held, self.job,
                       self.learns, asked, answer, None if self.rejected is None else self.rejected[:SHOWN],
                       self.expires_at)

    @property
    def reason(self) -> str:
        return self.heading.reason


def remains(state: State, held: bool, job: str | None) -> str:
    """Returns a sentence on deleted feedback that a job or adapter of the daemon still uses, or ""."""
    if state == "new" and job:
        use = "is evaluated by" if held else "learns"
        return f"{job} is not finished and {use} it all the same; cancel it, and the next training is without it"
    if state == "used" and not held:
        return f"adapters remain that learned it, from {job} on; the next training is without it"
    return ""


def heading_of(columns: Mapping[str, Any]) -> Heading:
    """Makes a Heading of the columns HEADING. Raises FormatError."""
    return from_json(Heading, {**columns, "held": columns["held"] == 1, "learns": bool(columns["learns"])}, "the row")


def item_of(columns: Mapping[str, Any]) -> FeedbackItem:
    """Makes an item of all columns of a row. Raises FormatError, or the errors of `read_row`."""
    try:
        row = read_row(columns["row"]) if columns["row"] else None
    except DataError as error:
        raise FormatError(error.what) from None
    named = {spec.name: columns[spec.name] for spec in fields(FeedbackItem)}  # an older database has more columns
    named.update(row=row, held=columns["held"] == 1, question=columns["question"] or "")
    return from_json(FeedbackItem, named, "the row")


# ---- rows ------------------------------------------------------------------------------------------------------------


def make_row(messages: Sequence[Mapping[str, Any]] | None, prompt: str | None, answer: str,
             tools: Sequence[Mapping[str, Any]] | None) -> Row:
    """Makes the row that teaches `answer`. Earlier answers of the conversation have weight 0: nobody confirmed them.

    Raises UsageError unless there is either a conversation or a prompt, DataError where it is malformed, where the
    answer calls what the tools do not take, or where it is no option of a typed question.
    """
    if (messages is None) == (prompt is None):
        raise UsageError("neither messages nor a prompt are given, or both", "give one of them")
    row: Row = {"prompt": prompt, "completion": answer}
    if messages is not None:
        row = {"messages": [*unlearned(messages), {"role": "assistant", "content": answer}]}
        if tools:
            row["tools"] = [*tools]
            check_calls("the answer", row["messages"][-1], row["tools"])
        if answer:
            check_answer(typed_in(row["messages"]), answer)
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
    """Returns the row with another last answer. Raises DataError for one that is no option of a typed question."""
    if "messages" in row:
        check_answer(typed_in(row["messages"]), answer)
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
