"""Compares two models by rows on which they differ, as the others are equally hard for both."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from .acceptance import Paired
from .served import GradedAnswer, Grades

LEVEL = 0.05  # a difference that chance makes less often than this is taken for one


@dataclass(frozen=True)
class Comparison:
    """Wins and losses of the second model. right: its wins are the rows that only it answers right. lower: its wins are
    the rows on which its loss is lower. answers: each row's two, where both answered.
    """

    right: Paired
    lower: Paired
    answers: Sequence[tuple[GradedAnswer, GradedAnswer]]

    @property
    def discordant(self) -> list[tuple[GradedAnswer, GradedAnswer]]:
        """The answers of which one alone is right."""
        return [(a, b) for a, b in self.answers if a.correct != b.correct]

    def to_json(self, shown: int) -> dict[str, Any]:
        """Both tests, and the first `shown` discordant rows of each kind."""
        rows = [{"prompt": a.question, "expected": a.expected, "first": a.answer, "second": b.answer,
                 "right": "first" if a.correct else "second"} for a, b in self.some(shown)]
        return {"right": to_json(self.right), "lower_loss": to_json(self.lower), "discordant": rows}

    def some(self, most: int) -> list[tuple[GradedAnswer, GradedAnswer]]:
        """The first of the discordant rows that are right with the first alone, then of the others."""
        kinds = ([pair for pair in self.discordant if pair[side].correct] for side in (0, 1))
        return [pair for kind in kinds for pair in kind[:most]]


def compare(first: Grades, second: Grades) -> Comparison:
    """Compares two models on the same rows."""
    answers = list(zip(first.answers, second.answers, strict=True))
    right = Paired.of([a.correct for a, _ in answers], [b.correct for _, b in answers])
    lower = Paired.of([-loss.mean for loss in first.losses], [-loss.mean for loss in second.losses])
    return Comparison(right, lower, answers)


def is_chance(found: Paired) -> bool:
    """Whether a difference may be chance. It says so to a person, who decides; what accepts a model calls `decide`."""
    return found.p_two_sided >= LEVEL


def in_words(found: Paired, first: str, second: str) -> str:
    """Says whether the difference may be chance. first, second: as in "right with A"."""
    if not found.wins + found.losses:
        return "no difference"
    p = found.p_two_sided
    if is_chance(found):
        return f"this may be chance (exact sign test, p = {p:.2g})"
    return f"not chance (exact sign test, p = {p:.2g}), better {second if found.wins > found.losses else first}"


def to_json(found: Paired) -> dict[str, Any]:
    return {"first_alone": found.losses, "second_alone": found.wins, "p": found.p_two_sided,
            "chance": is_chance(found)}
