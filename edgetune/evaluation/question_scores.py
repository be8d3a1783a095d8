"""Scores say how well an adapter answers each of its typed questions, and which answers it decides alone.

Its own facts (serving/calibration.py) and held-out rows give the same figures. With held-out rows an answer is decided
alone if its probability reaches the threshold that the adapter has learned, so that the rows test this threshold.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ..adapters.store import read_any
from ..data import decisions
from ..data.decisions import CHOICE, TypedQuestion
from ..objectives.labelling import Classified, Floats, Labelling
from ..serving.calibration import ERRORS, Calibration, calibrations_of
from ..serving.encoder import learned as learned_in
from ..serving.sureness import LEAST_ROWS, Sureness, at_least


@dataclass(frozen=True)
class DecidedAlone:
    """The questions that are decided alone so that at most the share `error` of them is wrong. share: of all questions;
    at_least: its lower bound; wrong: how many of them are, None if no other rows test it. missing: why there are none.
    """

    error: float
    share: float = 0.0
    at_least: float = 0.0
    wrong: int | None = None
    missing: str = ""


@dataclass(frozen=True)
class QuestionScores:
    """A typed question with the options that were learned, the figures of its answers, and what is decided alone."""

    question: TypedQuestion
    known: Calibration
    alone: tuple[DecidedAlone, ...]

    def to_json(self) -> dict[str, Any]:
        return {"type": self.question.type, "instructions": self.question.instructions, "rows": self.known.rows,
                "accuracy": self.known.accuracy, "brier": self.known.brier, "calibration_error": self.known.error,
                "calibration_error_by_chance": self.known.by_chance,
                "decided_alone": [{**vars(of_one)} for of_one in self.alone]}


def learned_questions(learned: Labelling) -> list[TypedQuestion]:
    """The typed questions that an adapter learned; the one without a name as a choice. [] for answers of several
    fields.
    """
    found = []
    for key in _keys(learned):
        if options := learned.options_of(key):
            labels = tuple(options.labels)
            known = decisions.read_key(key) or TypedQuestion(CHOICE, "answer", labels, ())
            texts = known.texts if len(known.texts) == len(labels) else ("",) * len(labels)
            found.append(TypedQuestion(known.type, known.instructions, labels, texts))
    return found


def scores_in(adapter: str | Path) -> list[QuestionScores]:
    """The scores by the facts of an adapter, a folder or a file; [] for one without. Raises FormatError for a damaged
    one.
    """
    _, found = read_any(Path(adapter))
    calibrations = calibrations_of(found, str(adapter))
    return scores_of_facts(learned_in(found, str(adapter)), calibrations) if calibrations else []


def scores_of_facts(learned: Labelling, calibrations: Sequence[Calibration]) -> list[QuestionScores]:
    """The scores by the calibrations of an adapter's heads; [] for an adapter without."""
    return [QuestionScores(question, known, tuple(_alone(known.sureness, known.rows, error) for error in ERRORS))
            for question, known in zip(learned_questions(learned), calibrations, strict=False)]


def scores_of_rows(learned: Labelling, calibrations: Sequence[Calibration], pairs: Sequence[tuple[str, str]],
                   found: Sequence[Classified]) -> list[QuestionScores]:
    """The scores by answers to held-out rows, of each question that some row answers; [] for an adapter without facts.
    pairs: (question, right answer) of each row, as `labelled.question_and_answer` reads it. Of several probable labels
    the most probable one is right.
    """
    probabilities: dict[str, list[Floats]] = defaultdict(list)
    classes: dict[str, list[int]] = defaultdict(list)
    for (asked, answer), classified in zip(pairs, found, strict=True):
        for key, label in _labels(asked, answer):
            if options := learned.options_of(key):
                probabilities[key].append(classified.probabilities[options.first:options.first + len(options.labels)])
                classes[key].append(options.labels.index(label) if label in options.labels else -1)
    scores = []
    for key, question, known in zip(_keys(learned), learned_questions(learned), calibrations, strict=False):
        if own := classes.get(key):
            p = np.array(probabilities[key], np.float64)
            measured = Calibration.measured(p, np.array(own, np.int32), np.ones(len(own), np.float32))
            alone = tuple(_tested(known, error, p, np.array(own)) for error in ERRORS)
            scores.append(QuestionScores(question, measured, alone))
    return scores


def _keys(learned: Labelling) -> list[str]:
    return [key for key, _ in getattr(learned, "questions", ())] or [""]


def _labels(question: str, answer: str) -> Iterator[tuple[str, str]]:
    """(key of a typed question, its right label) of a row."""
    if key := decisions.split(question)[0]:
        yield key, answer
        return
    for key, label in (decisions.labels_in(answer) or {"": answer}).items():
        yield key, decisions.likeliest(label)


def _alone(known: Sureness | None, rows: int, error: float) -> DecidedAlone:
    """What is decided alone, by the rows that say so themselves."""
    if known is None:
        return DecidedAlone(error, missing=f"{rows} rows that were not learned, at least {LEAST_ROWS} needed")
    if not (share := known.answered(1 - error)):
        return DecidedAlone(error, missing=known.missing(1 - error))
    return DecidedAlone(error, share, at_least(round(share * known.rows), known.rows))


def _tested(known: Calibration, error: float, p: np.ndarray, classes: np.ndarray) -> DecidedAlone:
    """What is decided alone by the threshold of `known`, of answers with the probabilities p [n, k]."""
    by_facts = _alone(known.sureness, known.rows, error)
    if by_facts.missing or not known.sureness:
        return by_facts
    sure = p.max(1) >= known.sureness.threshold(1 - error)
    count = int(sure.sum())
    wrong = int((sure & (p.argmax(1) != classes)).sum())
    return DecidedAlone(error, count / len(p), at_least(count, len(p)), wrong)
