"""The questions of the gate and the scores of adapters: plain data, without llama.cpp, for a process that trains."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from ...data.around import Instruction
from ...data.question import digest
from ...data.rows import Row
from ...evaluation.acceptance import Given, Population
from ...evaluation.judge import same
from ...persisted import from_json
from .rewards import Rewarding

if TYPE_CHECKING:
    from ...evaluation.canary import Drift

BETTER = "better"  # what an adapter must be to pass
NOT_WORSE = "not-worse"


@dataclass(frozen=True)
class RowScore:
    """The result of one row under one adapter. loss: nats a token of the answer. reach: how much of the right answer it
    says before its first mistake, 0 to 1. prose: the right answer is a longer text, which is compared by its loss.
    None: not measured for this row.

    unrated: nobody rated the active adapter's answer, which counts as right. question: the key of the typed question
    that the row answers; "": it answers none, or several.

    pair: the row is a pair of answers. It is right where the chosen one is likelier than the rejected one, and its loss
    is -log s of the difference of their log p: how sure it is of that. reward: of answers without one to compare.
    """

    loss: float | None
    right: bool | None = None
    reach: float | None = None
    ended: bool | None = None
    parsed: bool | None = None
    prose: bool = False
    pair: bool = False
    reward: float | None = None
    unrated: bool = False
    question: str = ""


@dataclass(frozen=True)
class GateExam:
    """The rows and texts that adapters are evaluated by. rounds: the jobs that the first rows are from; the others are
    of the job that is evaluated, whose adapter learned `corrected`. canary: a text, "": none. system, max_length: as in
    training. rewarding: how, where the job learns from rewards. tests_before: since the last publication. required: of
    the new adapter, BETTER or NOT_WORSE. drawn: questions that were drawn from all that people asked, with the right
    answers; unrated: those without one. population: how the other rows were chosen.
    """

    rows: Sequence[Row]
    canary: str = ""
    rounds: Sequence[str] = ()
    corrected: Sequence[Row] = ()
    system: Instruction = None
    max_length: int = 512
    rewarding: Rewarding | None = None
    tests_before: int = 0
    required: str = BETTER
    drawn: Sequence[Row] = ()
    unrated: Sequence[Row] = ()
    population: type[Population] = Given

    def is_rewarded(self, row: Row) -> bool:
        return self.rewarding is not None and self.rewarding.judges(row)

    def key(self, row: Row) -> str:
        """The key of a row's score: a digest of the row, and of the grader that rewards its answer."""
        if self.rewarding is not None and self.rewarding.judges(row):
            return self.rewarding.key(row)
        return digest(row)


@dataclass
class AskedAdapter:
    """An adapter: its name in the served model (None: the base), and its known Scores by their rows' keys."""

    name: str | None
    scores: dict[str, RowScore] = field(default_factory=dict)


def read_scores(found: Mapping[str, Any]) -> dict[str, RowScore]:
    return {row: from_json(RowScore, score, "the verdict on the active adapter") for row, score in found.items()}


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
        asked = [(row, a, b) for row, a, b in zip(rows, before, after, strict=True) if a is not None]
        return ([RowScore(None, right=True, unrated=True) for _ in asked],
                [RowScore(None, right=b is not None and same(a, b), unrated=True, question=self.typed(row))
                 for row, a, b in asked])

    def typed(self, row: Row) -> str:  # noqa: ARG002 - not every model is asked typed questions
        """Returns the key of the typed question that a row asks; "": it asks none."""
        return ""

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
