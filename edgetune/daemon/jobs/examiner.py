"""An examiner lets adapters answer rows, each once, and scores the answers; what answers is for a subclass."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from ...data.rows import Row
from ...evaluation.judge import same
from .exam import AskedAdapter, GateExam, RowScore

if TYPE_CHECKING:
    from ...evaluation.canary import Drift


class Examiner(ABC):
    """planned: rows to answer. on_asked: called with those done, and `planned`."""

    def __init__(self, exam: GateExam, on_asked: Callable[[int, int], None] | None = None) -> None:
        self.exam = exam
        self.planned = 0
        self._asked = 0
        self._on_asked = on_asked or (lambda _done, _of: None)

    def scores(self, adapter: AskedAdapter, rows: Sequence[Row]) -> list[RowScore]:
        """Returns the Scores of each row."""
        missing = self.missing(adapter, rows)
        self.planned = max(self.planned, self._asked + len(missing))
        adapter.scores |= self.answered(adapter.name, missing)
        return [adapter.scores[self.exam.key(row)] for row in rows]

    def missing(self, adapter: AskedAdapter, rows: Sequence[Row]) -> dict[str, Row]:
        """Returns the rows that it has not answered yet, each once, by their keys."""
        return {key: row for row in rows if (key := self.exam.key(row)) not in adapter.scores}

    @abstractmethod
    def answered(self, adapter: str | None, rows: dict[str, Row]) -> dict[str, RowScore]:
        """Returns the RowScore of each row by an adapter; None: by the base alone."""

    def unrated(self, old: str | None, new: str | None) -> tuple[list[RowScore], list[RowScore]]:
        """Returns the Scores of both adapters for the questions that nobody rated: what the active one answers counts
        as right. Questions that it does not answer are left out.
        """
        rows = self.exam.unrated
        before = self.replies(old, rows) if rows else []
        after = self.replies(new, rows) if rows else []
        pairs = [(a, b) for a, b in zip(before, after, strict=True) if a is not None]
        return ([RowScore(None, right=True, unrated=True) for _ in pairs],
                [RowScore(None, right=b is not None and same(a, b), unrated=True) for a, b in pairs])

    @abstractmethod
    def replies(self, adapter: str | None, rows: Sequence[Row]) -> list[str | None]:
        """Returns the answers to questions without a right answer; None for one that is not answered."""

    def drift(self, adapter: str | None) -> Drift | None:  # noqa: ARG002 - not every model has expectations of text
        """Returns how far an adapter is from the base on unrelated text; None: it is not measured."""
        return None

    def count(self) -> None:
        """Notes that a row was answered."""
        self._asked += 1
        self._on_asked(self._asked, self.planned)
