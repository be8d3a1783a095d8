"""An encoder as judge: a head on its vectors, fitted to the labelled rows alone, names the labels of prompts.

It is sure of an answer if SURE of the labelled rows that are named as surely are named rightly, by heads that were
fitted without them, and not of what is unlike them (sureness.py). More answers teach more than surer ones.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from ....data.labelled import are_few, encode, labels_of
from ....errors import DataError
from ....formats.gguf import Gguf
from ....serving.encoder import Encoder
from ....serving.sureness import Sureness
from ....training import logistic
from .answering import ModelAnswer
from .questions import TutorQuestion
from .setting import RoundSetting

SURE = 0.8  # share of right answers
NEVER = 2.0  # a probability that no answer has


def named(judge: Gguf, setting: RoundSetting, labelled: Sequence[TutorQuestion],
          asked: Sequence[TutorQuestion]) -> tuple[list[ModelAnswer], float]:
    """The judge's answer to each question with its probability, and the probability from which it is sure.

    labelled: what it learns from. Raises the errors of known_labels.
    """
    labels = known_labels(labelled)
    classes = np.array([labels.index(question.reference) for question in labelled], np.int32)
    encoder = Encoder(judge, setting.config.threads)
    vectors = encoder.vectors([encode(encoder.tokenizer, question.text, encoder.longest).ids
                               for question in (*labelled, *asked)])
    known, new = np.split(vectors, [len(labelled)])
    head = logistic.fit(known, classes, len(labels))
    p = logistic.probabilities(new, *head)
    found = [ModelAnswer(labels[best], 0, ended=True, probability=float(row[best]))
             for row, best in zip(p, p.argmax(1), strict=True)]
    p = logistic.out_of_fold(known, classes, len(labels))
    sureness = Sureness.of(p.max(1), p.argmax(1) == classes)
    return found, min(sureness.threshold(SURE), NEVER) if sureness else NEVER


def known_labels(labelled: Sequence[TutorQuestion]) -> tuple[str, ...]:
    """The labels that a judge can learn. Raises DataError where most answers occur once, or there is one label."""
    answers = [question.reference for question in labelled]
    if not are_few(answers):
        raise DataError("the judge names labels, and most labelled answers occur once",
                        "leave out --judge, or label more rows")
    return labels_of(answers)
