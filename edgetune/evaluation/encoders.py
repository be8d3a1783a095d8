"""Evaluates an encoder on held-out rows: its labels by their probabilities, and its vectors by the nearest passage."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from ..data.decisions import readable
from ..data.labelled import question_and_answer
from ..data.paired import texts_of
from ..data.rows import Row
from ..errors import DataError
from ..objectives.embed import Embed
from ..objectives.labelling import Floats
from ..serving.classifier import Classifier
from ..serving.encoder import Encoder
from .judge import same
from .question_scores import scores_of_rows
from .served import GradedAnswer, Grades, Loss, Scores, exact_share, mean_loss, parsed_share

LEAST = 1e-12  # probability of an answer that was never learned


def grade_labels(served: Classifier, rows: Sequence[Row], limit: int | None = None) -> Grades:
    """Exact answers of the first `limit` rows; the loss of all, and their scores by typed question. Raises DataError
    for rows without an answer.
    """
    if not rows:
        raise DataError("there are no rows to evaluate", "hold some out")
    pairs = [question_and_answer(row) for row in rows]
    graded = served.graded(pairs)
    losses = [Loss(-math.log(LEAST), 1.0, 1) if nats is None else Loss(float(nats.sum()), float(nats.size), nats.size)
              for _, nats in graded]
    canonical = served.learned.canonical
    answers = [GradedAnswer(question, readable(right), readable(found.label), same(canonical(right), found.label), True,
                            question) for (question, right), (found, _) in zip(pairs, graded, strict=True)][:limit]
    loss, tokens = mean_loss(losses)
    scores = Scores("native", len(rows), tokens, loss, exact_share(answers), len(answers), parsed_share(answers))
    questions = scores_of_rows(served.learned, served.known.calibrations, pairs, [found for found, _ in graded])
    return Grades(scores, losses, answers, questions)


def grade_vectors(encoder: Encoder, adapter: Path | None, rows: Sequence[Row], limit: int | None = None) -> Grades:
    """The nearest passage of the first `limit` queries as their answers, and of all the loss of `Embed` among all
    passages, those of `negative` too; of a query with several passages each is looked for without the others. adapter:
    a path; None: the encoder alone. Raises DataError for rows that are no pairs, or one pair.
    """
    texts = [texts_of(row) for row in rows]
    passages = [*dict.fromkeys(passage for _, *others in texts for passage in others)]
    if len(passages) < 2:
        raise DataError(f"there are {len(passages)} passages, and a query is compared with several", "add rows")
    numbers = {passage: number for number, passage in enumerate(passages)}
    own = np.array([numbers[text[1]] for text in texts])
    cosines = _vectors(encoder, adapter, [text[0] for text in texts]) @ _vectors(encoder, adapter, passages).T
    queries = np.array([text[0] for text in texts])
    for row, (query, number) in enumerate(zip(queries, own, strict=True)):
        others = own[queries == query]
        cosines[row, others[others != number]] = -1
    found = cosines[np.arange(len(own)), own]
    ranks = 1 + (cosines > found[:, None]).sum(1)
    z = (cosines - found[:, None]).astype(np.float64) / Embed().temperature
    losses = [Loss(float(np.log(np.exp(each).sum())), 1.0, 1) for each in z]
    answers = [GradedAnswer(text[0], text[1], passages[best], bool(rank == 1), True, text[0])
               for text, best, rank in zip(texts, cosines.argmax(1), ranks, strict=True)][:limit]
    loss, _ = mean_loss(losses)
    return Grades(Scores("native", len(rows), len(rows), loss, exact_share(answers), len(answers),
                         reciprocal_rank=float((1 / ranks).mean())), losses, answers)


def _vectors(encoder: Encoder, adapter: Path | None, texts: Sequence[str]) -> Floats:
    return encoder.vectors([encoder.read(text).encoded.ids for text in texts], adapter)
