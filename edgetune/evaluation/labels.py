"""Evaluates an encoder with a head: the answers that it gives to held-out questions, and their probabilities."""

from __future__ import annotations

import math
from collections.abc import Sequence

from ..data.labelled import question_and_answer
from ..data.rows import Row
from ..errors import DataError
from ..serving.classifier import Classifier
from .judge import same
from .served import GradedAnswer, Grades, Loss, Scores, exact_share, mean_loss, parsed_share

LEAST = 1e-12  # probability of an answer that was never learned


def grade_labels(served: Classifier, rows: Sequence[Row], limit: int | None = None) -> Grades:
    """Exact answers of the first `limit` rows, and the loss of all. Raises DataError for rows without an answer."""
    if not rows:
        raise DataError("there are no rows to evaluate", "hold some out")
    pairs = [question_and_answer(row) for row in rows]
    graded = served.graded(pairs)
    losses = [Loss(-math.log(LEAST), 1.0, 1) if nats is None else Loss(float(nats.sum()), float(nats.size), nats.size)
              for _, nats in graded]
    answers = [GradedAnswer(question, right, found.label, same(served.canonical(right), found.label), True, question)
               for (question, right), (found, _) in zip(pairs, graded, strict=True)][:limit]
    loss, tokens = mean_loss(losses)
    scores = Scores("native", len(rows), tokens, loss, exact_share(answers), len(answers), parsed_share(answers))
    return Grades(scores, losses, answers)
