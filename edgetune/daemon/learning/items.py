"""A piece of feedback as it is stored: whole, or its heading alone, for lists."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any, Literal

from ...errors import DataError, FormatError
from ...persisted import from_json
from .rows import Row, read_row

Rating = Literal["up", "down"]
State = Literal["new", "used", "aside", "withdrawn", "counted"]
HEADING = "id, created_at, rating, state, held, job, row IS NOT NULL AS learns"  # what a list shows of it


@dataclass(frozen=True)
class Heading:
    """A piece of feedback without its row, which may be large. learns: whether there is something to learn. held: it
    judges and is not learned. state: of the row, as in feedback.py; counted: it has none.
    """

    id: str
    created_at: int
    rating: Rating | None
    state: State
    held: bool
    job: str | None
    learns: bool

    @property
    def reason(self) -> str:
        """What becomes of it, one sentence."""
        if not self.learns:
            return "nothing to learn: a thumb down says that an answer is wrong, a correction would say what is right"
        if self.state == "withdrawn":
            return "taken back by a later word on the same answer"
        if self.state == "aside":
            return f"set aside: what {self.job} learned was found worse" if self.job else "this model cannot learn it"
        if self.held:
            return "held out: it judges what is learned"
        return f"learned by {self.job}" if self.state == "used" else "waits to be learned"


@dataclass(frozen=True)
class FeedbackItem:
    """A piece of feedback. row: what to learn, or None. held: it judges and is not learned.
    state: of the row, as in feedback.py; counted: it has none. question: digest of what was asked. reason: what
    becomes of it, one sentence.
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

    @property
    def heading(self) -> Heading:
        return Heading(self.id, self.created_at, self.rating, self.state, self.held, self.job, self.row is not None)

    @property
    def reason(self) -> str:
        return self.heading.reason


def heading_of(columns: Mapping[str, Any]) -> Heading:
    """Of the columns HEADING. Raises FormatError."""
    return from_json(Heading, {**columns, "held": bool(columns["held"]), "learns": bool(columns["learns"])}, "the row")


def item_of(columns: Mapping[str, Any]) -> FeedbackItem:
    """Of all columns of a row of the table. Raises FormatError, or what `read_row` raises."""
    try:
        row = read_row(columns["row"]) if columns["row"] else None
    except DataError as error:
        raise FormatError(error.what) from None
    named = {spec.name: columns[spec.name] for spec in fields(FeedbackItem)}  # an older database has more columns
    named.update(row=row, held=bool(columns["held"]), question=columns["question"] or "")
    return from_json(FeedbackItem, named, "the row")
