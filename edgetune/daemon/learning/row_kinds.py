"""Feedback as rows to learn from: each kind of rows that objectives read, made of a piece of feedback.

A piece has a question, a right or better answer, a wrong or worse one, or both. If a kind needs more than a piece has,
the piece waits for a daemon that learns by another method.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

from ...data import labelled, preferences, prompts, unpaired
from ...data import rows as supervised_rows
from ...data.rows import RowParser
from .items import FeedbackItem, Row

HAS_ANSWER = "(answer IS NOT '')"  # conditions on a row of the table
HAS_REJECTED = "rejected IS NOT NULL"


@dataclass(frozen=True)
class RowKind:
    """A kind of rows. parser: the module that reads them. says: their description, after "learns from". usable,
    evaluable: conditions, in SQL, on pieces of feedback that can be learned, and that can be held out. learned: makes
    rows of a piece, none where it is not usable. for_gate: makes the gate's row of a held-out piece.
    """

    parser: RowParser
    says: str
    usable: str
    evaluable: str
    learned: Callable[[FeedbackItem], Sequence[Row]]
    for_gate: Callable[[FeedbackItem], Row]


def kind_of(parser: RowParser) -> RowKind | None:
    """Returns the kind of an objective's rows; None where feedback lacks their fields."""
    return next((kind for kind in KINDS if kind.parser is parser), None)


def right_answer(item: FeedbackItem) -> Row:
    assert item.row is not None
    return item.row


def _parts(item: FeedbackItem) -> tuple[Any, Callable[[str], Any], Row]:
    """Returns (the question, what makes an answer of a text, further keys), all text or all messages."""
    row = right_answer(item)
    if "prompt" in row:
        return row["prompt"], str, {}
    beside = {"tools": row["tools"]} if "tools" in row else {}
    return row["messages"][:-1], lambda text: [{"role": "assistant", "content": text}], beside


def _pair(item: FeedbackItem) -> Row:
    asked, answer, beside = _parts(item)
    assert item.rejected is not None
    return {"prompt": asked, "chosen": answer(item.answer), "rejected": answer(item.rejected), **beside}


def _labelled(item: FeedbackItem) -> list[Row]:
    asked, answer, beside = _parts(item)
    said = [(item.answer, True)] if item.answer else []
    said += [] if item.rejected is None else [(item.rejected, False)]
    return [{"prompt": asked, "completion": answer(text), "label": label, **beside} for text, label in said]


def _asked(item: FeedbackItem) -> Row:
    """Returns a prompt. The right answer is a key that graders may name: item.completion."""
    asked, _, beside = _parts(item)
    return {"prompt": asked, **({"completion": item.answer} if item.answer else {}), **beside}


ANSWERS = RowKind(supervised_rows, "right answers", HAS_ANSWER, HAS_ANSWER, lambda item: [right_answer(item)],
                  right_answer)
LABELLED = replace(ANSWERS, parser=labelled)
PAIRS = RowKind(preferences, "pairs of a right or better answer and a wrong or worse one",
                f"({HAS_ANSWER} AND {HAS_REJECTED})", HAS_ANSWER,
                lambda item: [_pair(item)] if item.answer and item.rejected is not None else [],
                lambda item: _pair(item) if item.is_choice else right_answer(item))
LABELS = RowKind(unpaired, "answers that were found good or bad", f"({HAS_ANSWER} OR {HAS_REJECTED})", HAS_ANSWER,
                 _labelled, PAIRS.for_gate)
PROMPTS = RowKind(prompts, "questions whose answers its grader rewards", "TRUE", "TRUE", lambda item: [_asked(item)],
                  lambda item: right_answer(item) if item.answer else _asked(item))
KINDS = (ANSWERS, LABELLED, PAIRS, LABELS, PROMPTS)
