"""Which of several tasks a question belongs to, by vectors of questions of each task; none, where it is unlike them.

A linear classifier by least squares chooses the task. The likeness of a question is its mean cosine to the nearest
questions of that task. neighbours.py says from which likeness on it is like them.
Letters: n questions, D width of a vector, all of length 1.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from .neighbours import Floats, Neighbours, limit_of_learned, mean_of_greatest

NEAREST = 3  # questions; docs/results/retrieval.md compares them with means, as likeness.py has them of labels
RIDGE = 1.0  # added to the squares of the vectors, of which there is one a question


@dataclass(frozen=True)
class LearnedTask:
    """limit: the least likeness of a question that is like them."""

    known: Neighbours
    limit: float

    @classmethod
    def of(cls, questions: Floats) -> LearnedTask:
        """questions [n, D]: NEAREST + 1 different ones or more."""
        known = Neighbours(questions)
        cosines = known.likeness(questions)
        np.fill_diagonal(cosines, -np.inf)  # each is compared with the others
        return cls(known, limit_of_learned(mean_of_greatest(cosines, NEAREST)))

    def is_like(self, question: Floats) -> bool:
        """question: [D]."""
        return bool(mean_of_greatest(self.known.likeness(question[None]), NEAREST)[0] >= self.limit)


class Tasks:
    """Tasks by their names, with the vectors of questions of each."""

    def __init__(self, questions: Mapping[str, Floats]) -> None:
        self._tasks = {name: LearnedTask.of(own) for name, own in questions.items()}
        self._weights = _fitted(list(questions.values()))

    def of(self, question: Floats) -> str | None:
        """The name of the task that a question [D] belongs to; None: it is unlike all of them."""
        name = self.nearest(question)
        return name if self._tasks[name].is_like(question) else None

    def nearest(self, question: Floats) -> str:
        """The name of the likeliest task, however unlike the question is."""
        return list(self._tasks)[int(np.argmax(_with_one(question[None]) @ self._weights))]


def _fitted(tasks: Sequence[Floats]) -> NDArray[np.float64]:
    """The weights [D + 1, tasks] with which a question's own task is nearest to 1, and the others to 0. Tasks count
    alike, whatever their numbers of questions.
    """
    counts = [len(own) for own in tasks]
    x = _with_one(np.concatenate(tasks))
    weights = np.repeat([sum(counts) / len(tasks) / count for count in counts], counts)
    weighted = x * weights[:, None]
    targets = np.repeat(np.eye(len(tasks)), counts, axis=0)
    return np.linalg.solve(weighted.T @ x + RIDGE * np.eye(x.shape[1]), weighted.T @ targets)


def _with_one(questions: Floats) -> NDArray[np.float64]:
    return np.hstack([questions, np.ones((len(questions), 1))])
