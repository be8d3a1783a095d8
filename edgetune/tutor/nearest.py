"""Which questions are most like a question, by the words that both have (tf-idf: Salton and Buckley 1988)."""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Mapping, Sequence

from .questions import Question

Vector = Mapping[str, float]


class Nearest:
    """Questions to look among."""

    def __init__(self, questions: Sequence[Question]) -> None:
        self.questions = questions
        self._spread = Counter(word for question in questions for word in set(_words(question)))
        self._vectors = [self._vector(question) for question in questions]

    def to(self, question: Question, count: int) -> list[Question]:
        """The `count` most alike, the nearest first, without the question itself; of equal ones the first."""
        vector = self._vector(question)
        others = [i for i, other in enumerate(self.questions) if other.key != question.key]
        likeness = {i: sum(vector.get(word, 0.0) * weight for word, weight in self._vectors[i].items()) for i in others}
        return [self.questions[i] for i in sorted(others, key=lambda i: -likeness[i])[:count]]

    def _vector(self, question: Question) -> Vector:
        """Of length 1: how often each word is there, the rarer among the questions the weightier."""
        counts = Counter(_words(question))
        found = {word: (1 + math.log(count)) * math.log((len(self.questions) + 1) / (self._spread[word] + 0.5))
                 for word, count in counts.items()}
        length = math.sqrt(sum(weight * weight for weight in found.values()))
        return {word: weight / length for word, weight in found.items()} if length else {}


def _words(question: Question) -> list[str]:
    return re.findall(r"\w+", question.text.casefold())
