"""An answer to a typed question: the probabilities of the options that were offered, and what clients read from them.

The formulas of confidence are those that TypeSafe's and OpenAI's answers have. Letters: n options, p their
probabilities.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ...data.decisions import CHOICE, YES, TypedQuestion
from ...errors import NotFoundError
from ...objectives.labelling import Labelling
from ...serving.encoder import Reader

Doubles = NDArray[np.float64]
SURE = 0.95  # share of sure answers that is right


@dataclass(frozen=True)
class Decided:
    """The answer to a question. p: the probability of each of its labels, float64 [n], whose sum is 1. is_sure: whether
    it is one of the answers of which SURE are right. recalled: the feedback whose correction answers; "": a model does.
    is_untuned: whether a model that did not learn the question answers it.
    """

    question: TypedQuestion
    p: Doubles
    is_sure: bool = False
    recalled: str = ""
    is_untuned: bool = False

    @property
    def label(self) -> str:
        """The most probable label."""
        return self.question.labels[int(self.p.argmax())]

    @property
    def yes(self) -> float:
        """The probability of yes."""
        return float(self.p[self.question.labels.index(YES)])

    @property
    def score(self) -> float:
        """The expected level."""
        return float(self.p @ np.arange(self.p.size))

    @property
    def confidence(self) -> float:
        """1 if one label has all probability, 0 if all have the same: (max p - 1/n) / (1 - 1/n)."""
        least = 1 / self.p.size
        return float((self.p.max() - least) / (1 - least))

    @property
    def confidence_of_score(self) -> float:
        """1 - E|i - mode| / d, d the mean distance of the levels to their centre; at least 0."""
        levels = np.arange(self.p.size)
        away = self.p @ np.abs(levels - int(self.p.argmax()))
        return max(0.0, float(1 - away / np.abs(levels - levels.mean()).mean()))


UNNAMED = ""  # the typed question of rows that name none


def learned_as(question: TypedQuestion, learned: Labelling) -> str:
    """The key by which an adapter answers a question: its own; UNNAMED for a choice if rows that name no question
    taught all of its options, and no others taught it. The labels of a yes/no question, or of a score, say nothing of
    what is asked.
    """
    if question.type != CHOICE or learned.options_of(question.key):
        return question.key
    found = learned.options_of(UNNAMED)
    return UNNAMED if found and {*question.labels} <= {*found.labels} else question.key


def decided(name: str, question: TypedQuestion, reader: Reader, p: Doubles) -> Decided:
    """The answer by the probabilities [k] of the labels of all heads: a soft-max over the options that are offered.
    Raises NotFoundError for a question, or an option, that was not learned. name: the question's, for the error.
    """
    found = reader.learned.options_of(learned_as(question, reader.learned))
    if found is None:
        raise NotFoundError(f"the question {name!r:.80} was not learned", "teach it by rows that answer it")
    if new := [label for label in question.labels if label not in found.labels]:
        raise NotFoundError(f"the option {new[0]!r:.80} of the question {name!r:.80} was not learned, only "
                            f"{', '.join(found.labels):.200}", "teach it by rows with it, or leave it out")
    numbers = [found.first + found.labels.index(label) for label in question.labels]
    chosen = np.maximum(p[numbers], np.finfo(np.float64).tiny)
    chosen /= chosen.sum()
    known = reader.known.calibrations[found.head:found.head + 1]
    is_whole = len(question.labels) == len(found.labels)  # of fewer options nothing is known
    sureness = known[0].sureness if known and is_whole else None
    return Decided(question, chosen, bool(sureness and chosen.max() >= sureness.threshold(SURE)))


def certain(question: TypedQuestion, label: str) -> Doubles:
    """The probabilities of an answer that a person gave."""
    return np.array([float(each == label) for each in question.labels])
