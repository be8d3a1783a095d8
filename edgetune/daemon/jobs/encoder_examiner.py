"""The examiner of an encoder: adapters answer by our engine, as they are served.

The encoder alone answers nothing: each of its answers is wrong, and it finds all labels equally likely, those of the
adapter that is to be evaluated. An answer with a part that an adapter never learned is wrong, and has no loss.

A right answer has the loss 0. How sure a head is of it falls with each label that is learned in addition, though no
answer is worse: an adapter with new labels would lose all questions that both answer rightly.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from ...adapters.heads import MULTILABEL
from ...data.decisions import split
from ...data.labelled import Read, question_and_answer
from ...data.rows import Row, as_messages
from ...errors import DataError
from ...evaluation.judge import same
from ...objectives.labelling import Floats, Labelling
from ...serving.encoder_model import EncoderModel
from .exam import Examiner, GateExam, RowScore

ANY = "?"  # an answer where none is read
TOGETHER = 64  # rows that are answered until others have a turn


class EncoderExaminer(Examiner):
    """Lets adapters of `served` answer. before: called before some rows are answered."""

    def __init__(self, served: EncoderModel, exam: GateExam, on_asked: Callable[[int, int], None] | None = None,
                 before: Callable[[], object] = lambda: None) -> None:
        super().__init__(exam, on_asked)
        self.served = served
        self._before = before

    def answered(self, adapter: str | None, rows: dict[str, Row]) -> dict[str, RowScore]:
        """Returns Scores. A row that has not one question and one answer is not answered."""
        found: dict[str, RowScore] = {}
        pairs: dict[str, tuple[str, str]] = {}
        for key, row in rows.items():
            try:
                pairs[key] = question_and_answer(row)
            except DataError:
                found[key] = RowScore(None)
                self.count()
        keys = [*pairs]
        for begin in range(0, len(keys), TOGETHER):
            some = keys[begin:begin + TOGETHER]
            self._before()
            found |= zip(some, self._scores(adapter, [pairs[key] for key in some]), strict=True)
        return found

    def typed(self, row: Row) -> str:
        return split(question_and_answer(_with_any(row))[0])[0]

    def replies(self, adapter: str | None, rows: Sequence[Row]) -> list[str | None]:
        """Returns labels; the encoder alone answers nothing."""
        found: list[str | None] = []
        for row in rows:
            self.count()
            self._before()
            try:
                question, _ = question_and_answer(_with_any(row))
            except DataError:  # an earlier turn, say
                found.append(None)
                continue
            read = self.served.encoder.read(question)
            reader = self.served.reader(adapter) if adapter else None
            can_answer = reader and reader.learned.knows(read.typed)
            found.append(reader.classify([read])[0].label if reader and can_answer else None)
        return found

    def _scores(self, adapter: str | None, pairs: list[tuple[str, str]]) -> list[RowScore]:
        for _ in pairs:
            self.count()
        read = [self.served.encoder.read(question) for question, _ in pairs]
        answers = [right for _, right in pairs]
        if adapter is None:
            learned = self.served.reader(self.served.adapters()[-1]).learned
            return [RowScore(_mean(learned.losses(one, _equally_likely(learned, one), right)), right=False)
                    for one, right in zip(read, answers, strict=True)]
        reader = self.served.reader(adapter)
        scores = []
        for one, (found, losses), right in zip(read, reader.graded(read, answers), answers, strict=True):
            is_right = same(reader.learned.canonical(right), reader.learned.canonical(found.label))
            scores.append(RowScore(0.0 if is_right else _mean(losses), is_right, question=one.typed))
        return scores


def _with_any(row: Row) -> dict[str, Any]:
    """Returns a question with an answer that nobody reads."""
    assert isinstance(row, Mapping)
    if "prompt" in row:
        return {"messages": as_messages(row["prompt"], ANY)}
    return {"messages": [*row["messages"], {"role": "assistant", "content": ANY}]}


def _equally_likely(learned: Labelling, read: Read) -> Floats:
    """Probabilities [S, labels] by which all labels of a head are equally likely, and each one that may be there as
    likely as not.
    """
    sizes = [head.size for head in learned.heads]
    each = [0.5 if head.name == MULTILABEL.name else 1 / head.size for head in learned.heads]
    return np.tile(np.repeat(np.array(each, np.float32), sizes), (len(sizes) + read.tokens, 1))


def _mean(losses: Floats | None) -> float | None:
    return None if losses is None else float(losses.mean())
