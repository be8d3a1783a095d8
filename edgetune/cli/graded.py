"""Shows grades for eval, compare and merge, and saves answers."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.text import Text

from ..errors import printable

if TYPE_CHECKING:
    from rich.table import Table

    from ..evaluation.compare import Comparison
    from ..evaluation.served import GradedAnswer, Scores

SHOWN = 3  # rows of each kind in which two models differ


def exact_text(scores: Scores) -> str:
    """The share of right answers, with its 95 % interval."""
    if scores.exact is None or scores.interval is None:
        return "none was asked for"
    low, high = scores.interval
    return f"{scores.exact:.1%} of {scores.exact_rows} ({low:.0%} to {high:.0%})"


def comparison_headline(found: Comparison, first: str, second: str) -> Text:
    """Says which of two is better, by right answers, or by losses where nobody answered. first, second: their names."""
    from ..console import headline
    from ..evaluation.compare import is_chance
    paired = found.right if found.answers else found.lower
    rows = "rows right" if found.answers else "rows of lower loss"
    counted = f"{rows} with {first} alone: {paired.losses}, with {second} alone: {paired.wins}"
    p = paired.p_two_sided
    if is_chance(paired):
        return headline(["no clear difference", counted, f"p = {p:.2g}"], "yellow")
    return headline([f"{second if paired.wins > paired.losses else first} is better", counted, f"p = {p:.2g}"], "green")


def comparison_lines(found: Comparison, first: str, second: str) -> list[str]:
    """The rows on which each is better, and whether that may be chance. first, second: as in "right with A"."""
    from ..evaluation.compare import in_words
    right = found.right
    lower = found.lower
    lines = [f"rows of lower loss {first}: {lower.losses}, {second}: {lower.wins}; {in_words(lower, first, second)}"]
    if found.answers:
        lines.insert(0, f"rows right only {first}: {right.losses}, only {second}: {right.wins}; "
                     f"{in_words(right, first, second)}")
    return lines


def discordant_table(found: Comparison, first: str, second: str) -> Table:
    """Shows the first rows that only one model answers right, with the answers of both."""
    return _blocks([[("prompt", both[0].question), ("expected", both[0].expected),
                     *(line for name, answer in zip((first, second), both, strict=True)
                       for line in _said(f"{name}, {'right' if answer.correct else 'wrong'}", answer))]
                    for both in found.some(SHOWN)])


def wrong_table(answers: Sequence[GradedAnswer]) -> Table:
    """Shows of each answer the prompt, the expected answer, the given one and, for JSON, the differences."""
    return _blocks([[("prompt", a.question), ("expected", a.expected), *_said("answer", a)] for a in answers])


def _said(name: str, answer: GradedAnswer) -> list[tuple[str, str]]:
    found = answer.differences
    return [(name, answer.answer.strip()), *([("", "; ".join(found))] if found else [])]


def _blocks(blocks: Sequence[Sequence[tuple[str, str]]]) -> Table:
    """Blocks of (name, text), an empty line between them."""
    from ..console import table
    lines: list[tuple[str, str]] = []
    for block in blocks:
        lines += [("", ""), *((name, printable(text)) for name, text in block)]
    return table("", ["", ""], lines[1:])


def answer_json(answer: GradedAnswer) -> dict[str, Any]:
    """A wrong answer, as --show-wrong --json gives it."""
    return {"prompt": answer.question, "expected": answer.expected, "answer": answer.answer,
            "differences": answer.differences}


def save_answers(path: Path, base: Sequence[GradedAnswer], adapter: Sequence[GradedAnswer]) -> None:
    """A JSON line a row: prompt, expected, the base's answer and, where it exists, the adapter's; which are right."""
    from .prompts import save_lines
    rows = [{"prompt": b.question, "expected": b.expected, "base": b.answer, "base_correct": b.correct} for b in base]
    for row, a in zip(rows, adapter, strict=False):
        row |= {"adapter": a.answer, "adapter_correct": a.correct}
    save_lines(path, rows)
