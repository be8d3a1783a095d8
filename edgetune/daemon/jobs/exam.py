"""The questions of the gate and the scores of adapters: plain data, without llama.cpp, for a process that trains."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from ...data.around import Instruction
from ...data.question import digest
from ...data.rows import Row
from ...evaluation.acceptance import Given, Population
from ...persisted import from_json
from .rewards import Rewarding

BETTER = "better"  # what an adapter must be to pass
NOT_WORSE = "not-worse"


@dataclass(frozen=True)
class RowScore:
    """The result of one row under one adapter. loss: nats a token of the answer. reach: how much of the right answer it
    says before its first mistake, 0 to 1. prose: the right answer is a longer text, which is compared by its loss.
    None: not measured for this row.

    unrated: nobody rated the active adapter's answer, which counts as right.

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
