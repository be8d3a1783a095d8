"""Evaluates an encoder with a head: the labels that it gives to held-out questions, and their probabilities."""

from __future__ import annotations

import math
from collections.abc import Sequence

from ..data.labelled import question_and_answer
from ..data.rows import Row
from ..errors import DataError
from ..serving.classifier import Classifier
from .judge import same
from .served import Answer, Graded, Loss, Scores, exact_share, mean_loss, parsed_share

LEAST = 1e-12  # probability of a label that was never learned


def grade_labels(served: Classifier, rows: Sequence[Row], limit: int | None = None) -> Graded:
    """Exact labels of the first `limit` rows, and -log p of all. Raises DataError for rows without a label."""
    if not rows:
        raise DataError("there are no rows to evaluate", "hold some out")
    pairs = [question_and_answer(row) for row in rows]
    place = {label: number for number, label in enumerate(served.labels)}
    losses = []
    answers = []
    for (question, label), found in zip(pairs, served.classify([question for question, _ in pairs]), strict=True):
        if served.labels:
            p = float(found.probabilities[place[label]]) if label in place else 0.0
            losses.append(Loss(-math.log(max(p, LEAST)), 1.0, 1))
        answers.append(Answer(question, label, found.label, same(label, found.label), True, question))
    answers = answers[:limit]
    loss, tokens = mean_loss(losses) if losses else (0.0, 0)  # of several fields none is measured
    scores = Scores("native", len(rows), tokens, loss, exact_share(answers), len(answers), parsed_share(answers))
    return Graded(scores, losses, answers)
