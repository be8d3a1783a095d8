"""The scores of typed questions as a table."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ..evaluation.question_scores import DecidedAlone, QuestionScores


def scores_json(scores: Sequence[QuestionScores]) -> dict[str, Any]:
    """What --json shows of them: nothing without scores."""
    return {"questions": [score.to_json() for score in scores]} if scores else {}


def question_lines(scores: Sequence[QuestionScores]) -> list[Any]:
    """A line a question, then why nothing is decided alone; nothing for an adapter without such scores."""
    from ..console import table
    if not scores:
        return []
    heads = ["question", "rows", "right", "Brier", "calibration error (by chance)",
             *(f"alone at <= {of_one.error:.0%} error" for of_one in scores[0].alone)]
    lines = [[score.question.instructions, str(score.known.rows), f"{score.known.accuracy:.0%}",
              f"{score.known.brier:.3f}", f"{score.known.error:.3f} ({score.known.by_chance:.3f})",
              *(_cell(of_one) for of_one in score.alone)] for score in scores]
    why = {f"none decided alone at <= {of_one.error:.0%} error: {of_one.missing}" for score in scores
           for of_one in score.alone if of_one.missing}
    return ["", table("", heads, lines, (1, 2, 3, 4, 5, 6)), *sorted(why, reverse=True)]


def _cell(alone: DecidedAlone) -> str:
    if alone.missing:
        return "none"
    wrong = "" if alone.wrong is None else f", {alone.wrong} wrong"
    return f"{alone.share:.0%} (>= {alone.at_least:.0%}){wrong}"
