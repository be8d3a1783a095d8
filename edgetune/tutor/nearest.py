"""Which questions are most like a question."""

from __future__ import annotations

from collections.abc import Sequence

from ..data.likeness import Likeness
from .questions import Question


class Nearest:
    """Questions to look among."""

    def __init__(self, questions: Sequence[Question]) -> None:
        self.questions = questions
        self._known = Likeness([question.text for question in questions])

    def to(self, question: Question, count: int) -> list[Question]:
        """The `count` most alike, the nearest first, without the question itself; of equal ones the first."""
        likeness = self._known.to(question.text)
        others = [i for i, other in enumerate(self.questions) if other.key != question.key]
        return [self.questions[i] for i in sorted(others, key=lambda i: -likeness[i])[:count]]
