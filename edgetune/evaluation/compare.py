"""Two models on the same rows, in pairs: hard rows and easy ones are the same for both, so only those count on which
the two differ.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from .served import Answer, Graded
from .significance import two_sided

LEVEL = 0.05  # a difference that chance makes less often than this is taken for one


@dataclass(frozen=True)
class Discordant:
    """The number of rows on which the first model alone is better, and the second alone."""

    first: int
    second: int

    @property
    def p(self) -> float:
        """The exact sign test: how often chance makes such a difference, or a larger one, between equals."""
        return two_sided(self.first, self.second)

    def verdict(self, first: str, second: str) -> str:
        """In plain words whether the difference is chance. first, second: as in "right with A"."""
        if not self.first + self.second:
            return "no difference"
        if self.p >= LEVEL:
            return f"this may be chance (exact sign test, p = {self.p:.2g})"
        return f"not chance (exact sign test, p = {self.p:.2g}), better {first if self.first > self.second else second}"

    def to_json(self) -> dict[str, Any]:
        return {"first_alone": self.first, "second_alone": self.second, "p": self.p,
                "chance": self.p >= LEVEL}


@dataclass(frozen=True)
class Comparison:
    """right: rows that are answered right with one alone. lower: rows whose loss is lower with one; equal ones count
    for neither. answers: each row's two, where both were asked.
    """

    right: Discordant
    lower: Discordant
    answers: Sequence[tuple[Answer, Answer]]

    @property
    def discordant(self) -> list[tuple[Answer, Answer]]:
        """The answers of which one alone is right."""
        return [(a, b) for a, b in self.answers if a.correct != b.correct]

    def to_json(self, shown: int) -> dict[str, Any]:
        """With the first `shown` discordant rows of each kind."""
        rows = [{"prompt": a.question, "expected": a.expected, "first": a.answer, "second": b.answer,
                 "right": "first" if a.correct else "second"} for a, b in self.some(shown)]
        return {"right": self.right.to_json(), "lower_loss": self.lower.to_json(), "discordant": rows}

    def some(self, most: int) -> list[tuple[Answer, Answer]]:
        """The first of the discordant rows that are right with the first alone, then of the others."""
        kinds = ([pair for pair in self.discordant if pair[side].correct] for side in (0, 1))
        return [pair for kind in kinds for pair in kind[:most]]


def compare(first: Graded, second: Graded) -> Comparison:
    """Of two models that were asked the same rows."""
    answers = list(zip(first.answers, second.answers, strict=True))
    losses = [(a.mean, b.mean) for a, b in zip(first.losses, second.losses, strict=True)]
    right = _count((a.correct, b.correct) for a, b in answers)
    return Comparison(right, _count((-a, -b) for a, b in losses), answers)


def _count(pairs: Iterable[tuple[float, float]]) -> Discordant:
    """The numbers of pairs whose first value is larger, and whose second."""
    signs = [(a > b) - (a < b) for a, b in pairs]
    return Discordant(signs.count(1), signs.count(-1))
