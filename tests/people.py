"""People who ask, and sometimes rate: the world of the simulations of the gate.

It knows nothing of the gate. Each question has a right answer, A's and B's answers to it, and what a person said about
A's answer: nothing (silence), the right answer (a correction), praise, or a wrong answer that they take for right.
"""

from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

Bools = NDArray[np.bool_]
SILENT, CORRECTED, PRAISED, CONTRADICTED = range(4)
SHARE = 5  # one question in five is drawn


@dataclass(frozen=True)
class People:
    """Shares: of A's errors that are corrected, of its right answers that are praised, and of all that are answered
    with a correction to something wrong.
    """

    corrects: float = 1 / 3
    praises: float = 0.0
    contradicts: float = 0.0

    def say(self, dice: np.random.Generator, right: Bools) -> NDArray[np.int_]:
        """What is said about answers that are right or wrong [N]."""
        chance = dice.random(len(right))
        said = np.where(right, np.where(chance < self.praises, PRAISED, SILENT),
                        np.where(chance < self.corrects, CORRECTED, SILENT))
        return np.where(dice.random(len(right)) < self.contradicts, CONTRADICTED, said)


@dataclass(frozen=True)
class Pair:
    """Two adapters. accuracy: of A; gain: by which B's is greater. shared: share of the questions on which B answers as
    A does. nested: B differs from A only where it must: it mends so many errors as it breaks right answers, and `gain`
    more. likes: B rather mends what people correct, as one does that learned their corrections.
    """

    accuracy: float
    gain: float = 0.0
    shared: float = 0.0
    nested: float = 0.0
    likes: bool = False

    def answers(self, dice: np.random.Generator, right: Bools, said: NDArray[np.int_]) -> tuple[Bools, Bools]:
        """Whether B is right, and whether it answers as A does [N]."""
        n = len(right)
        if self.nested:
            mends = min(1.0, (self.nested + self.gain) / (1 - self.accuracy))
            breaks = self.nested / self.accuracy
            changed = dice.random(n) < np.where(right, breaks, mends)
            return right ^ changed, ~changed
        if self.likes:  # all corrected ones are mended, and as many right ones broken that the accuracy is as it should
            mended = ~right & (said == CORRECTED)
            lost = max(0.0, mended.mean() - self.gain) / max(self.accuracy, 1e-9)
            broken = right & (dice.random(n) < lost)
            return (right | mended) & ~broken, ~(mended | broken)
        accuracy = self.accuracy + self.gain / (1 - self.shared)
        same = dice.random(n) < self.shared
        other = dice.random(n) < accuracy
        b = np.where(same, right, other)
        as_a = same | (right & b)  # two wrong answers differ, unless they are shared
        return b, as_a


@dataclass
class Sample:
    """The drawn questions since A became active."""

    right: Bools = field(default_factory=lambda: np.empty(0, bool))
    said: NDArray[np.int_] = field(default_factory=lambda: np.empty(0, int))

    def night(self, dice: np.random.Generator, accuracy: float, people: People, asked: int) -> None:
        n = int(dice.binomial(asked, 1 / SHARE))
        right = dice.random(n) < accuracy
        self.right = np.concatenate([self.right, right])[-256:]
        self.said = np.concatenate([self.said, people.say(dice, right)])[-256:]


def counts(said: NDArray[np.int_], b: Bools, as_a: Bools) -> tuple[int, int]:
    """Questions that B wins and loses, if silence means that A was right."""
    wins = (said == CORRECTED) & b
    losses = ((said == SILENT) & ~as_a) | ((said == PRAISED) & ~b)
    return int(wins.sum()), int(losses.sum())


def as_world(right: Bools, said: NDArray[np.int_], b: Bools, as_a: Bools) -> list[dict[str, Any]]:
    """The same questions as texts: what was asked, both answers, and the answer that people say is right, or None."""
    rows = []
    for i, (a_right, word, b_right, same) in enumerate(zip(right, said, b, as_a, strict=True)):
        old = f"right {i}" if a_right else f"wrong {i}"
        new = old if same else f"right {i}" if b_right else f"otherwise {i}"
        truth = {SILENT: None, CORRECTED: f"right {i}", PRAISED: f"right {i}", CONTRADICTED: f"odd {i}"}[int(word)]
        rows.append({"asked": f"question {i}", "old": old, "new": new, "truth": truth})
    return rows
