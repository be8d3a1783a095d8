"""Held-out questions whose right answer nobody knows, judged by what most answers of the published adapter say.

Several answers in two views are right more often than one. So an adapter whose one answer is nearer to them than that
of the published one has learned what they know, on questions that it never saw. They are the published adapter's own
answers, so what differs from it by chance is further from them: the comparison favours what is published.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from ..evaluation.graders.agreement import parts_of
from .agreement import consensus, in_common
from .generating import generate
from .questions import Question
from .setting import Setting

SURE = 0.5  # of what is said must be in common, for a question to judge


def with_agreed(setting: Setting, number: int, questions: Sequence[Question], published: Path) -> list[Question]:
    """Those of the questions whose answers have enough in common, each with the answer that has most of it."""
    if not questions:
        return []
    said = generate(setting, number, questions, setting.pairs(published))
    agreed = [consensus([one.text for one in of if one.ended]) for of in said]
    return [replace(question, agreed=found.text) for question, found in zip(questions, agreed, strict=True)
            if found and found.share >= SURE]


def nearness(question: Question, text: str) -> float:
    """What an answer has in common with the right one, or else with what most say."""
    return in_common(parts_of(text), parts_of(question.reference or question.agreed))
