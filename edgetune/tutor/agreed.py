"""Held-out questions whose right answer nobody knows, judged by what the published adapter says behind labelled rows.

With right answers to questions like it in view an adapter is right more often than without, and goes wrong otherwise.
So one whose answer without them is nearer to that than the published one's is has learned something, on questions that
it never saw. What the published adapter says by itself must not be counted in: whatever differs from it is further from
that, also where it is better. That these answers break the form of labelled ones does not count: they judge part by
part, and of those that keep it whole there are too few to judge by.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from ..evaluation.graders.agreement import parts_of
from .agreement import consensus, in_common
from .generating import answers_behind_rows
from .questions import Question
from .setting import Setting

SURE = 0.4  # of what is said must be in common, for a question to judge


def with_agreed(setting: Setting, number: int, questions: Sequence[Question],
                published: Path | None) -> list[Question]:
    """Those of the questions whose answers have enough in common, each with the answer that has most of it; none where
    nothing is published yet. The memory that this took is given back.
    """
    if published is None:
        return []
    said = answers_behind_rows(setting, number, questions, setting.pairs(published))
    setting.release()
    agreed = [consensus([one.text for one in of if one.ended]) for of in said]
    return [replace(question, agreed=found.text) for question, found in zip(questions, agreed, strict=True)
            if found and found.share >= SURE]


def nearness(question: Question, text: str) -> float:
    """What an answer has in common with the right one, or else with what most say."""
    return in_common(parts_of(text), parts_of(question.reference or question.agreed))
