"""What an encoder's answers to examples that it did not learn say: how well it answers, and which answers are sure.

Such are held-out examples, and those of each part of the rows by an adapter that learned the other parts; the answers
of several adapters are taken together by `+`. Letters: n answers, k labels.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from ..serving import calibration
from ..serving.calibration import Calibration
from ..serving.sureness import ANSWERS, Sureness


@dataclass(frozen=True)
class HeadAnswers:
    """The answers of a head: probabilities [n, k], the right labels [n], and how much each counts [n]."""

    p: np.ndarray
    classes: np.ndarray
    shares: np.ndarray

    def __add__(self, other: HeadAnswers) -> HeadAnswers:
        return HeadAnswers(*(np.concatenate(parts) for parts in zip(vars(self).values(), vars(other).values(),
                                                                    strict=True)))


@dataclass(frozen=True)
class Told:
    """Answers, or parts of them: the probability of each, and whether all its labels are right. unlike: the share of
    them that is unlike the learned ones.
    """

    unlike: float
    probabilities: list[float] = field(default_factory=list)
    right: list[bool] = field(default_factory=list)

    def add(self, logp: np.ndarray, is_right: np.ndarray) -> None:
        """Adds an answer by log p of its labels."""
        self.probabilities.append(float(np.exp(logp.sum())))
        self.right.append(bool(is_right.all()))

    def __add__(self, other: Told) -> Told:
        return Told(self.unlike, self.probabilities + other.probabilities, self.right + other.right)


@dataclass(frozen=True)
class Untaught:
    """heads: of each head, if these are calibrated. told: else, by the names of facts."""

    heads: tuple[HeadAnswers, ...] = ()
    told: Mapping[str, Told] = field(default_factory=dict)

    def __add__(self, other: Untaught) -> Untaught:
        return Untaught(tuple(a + b for a, b in zip(self.heads, other.heads, strict=True)),
                        {name: own + other.told[name] for name, own in self.told.items()})

    def facts(self) -> dict[str, Any]:
        """The facts that are kept with an adapter: the calibration of each head, and when its answers are sure."""
        found = [Calibration.of(*vars(head).values()) for head in self.heads]
        sure = {name: Sureness.of(own.probabilities, own.right, own.unlike) for name, own in self.told.items()}
        if len(found) == 1:
            sure[ANSWERS] = found[0].sureness
        facts: dict[str, Any] = {calibration.NAME: [head.to_json() for head in found]} if found else {}
        return facts | {name: one.to_json() for name, one in sure.items() if one}

    def loss(self) -> float | None:
        """The mean -log p of the right labels after calibration; None where heads are not calibrated."""
        total = count = 0.0
        for head in self.heads:
            logp = np.log(np.maximum(head.p.astype(np.float64), calibration.TINY))
            t = Calibration.of(head.p, head.classes, head.shares).temperature
            right = calibration.cooled(logp, t)[np.arange(len(logp)), head.classes]
            total -= float((head.shares * np.log(np.maximum(right, calibration.TINY))).sum())
            count += float(head.shares.sum())
        return total / count if count else None

    def right(self) -> tuple[float, float, float] | None:
        """(the number of answers, how many of them are right, how many would be if each question had always the same
        answer); None where heads are not calibrated.
        """
        found = [(head.shares.sum(), (head.shares * (head.p.argmax(1) == head.classes)).sum(),
                  np.bincount(head.classes, head.shares).max()) for head in self.heads if len(head.p)]
        if not found:
            return None
        n, right, commonest = np.sum(found, axis=0)
        return float(n), float(right), float(commonest)
