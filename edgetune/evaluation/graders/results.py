"""The grades of a file of rows: means, pass@k and errors."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from .base import Grade

ROUNDING = 1e-9  # a formula of rewards such as 0.1 + 0.2 + 0.7 may fall short of 1 by that


@dataclass(frozen=True)
class GradedSample:
    """A graded answer. row: its index; prompt: that of the row, as it is written there."""

    row: int
    sample: int
    prompt: Any
    text: str
    grade: Grade

    def to_json(self) -> dict[str, Any]:
        grade = self.grade
        return {"prompt": self.prompt, "sample": self.sample, "text": self.text,
                "reward": grade.reward if grade.applicable else None, "parts": dict(grade.parts),
                "errors": dict(grade.errors)}


@dataclass(frozen=True)
class Results:
    """Answers with their grades, as many to each row. passes_at: the reward from which an answer passes."""

    graded: list[GradedSample]
    passes_at: float

    @property
    def applicable(self) -> list[GradedSample]:
        return [graded for graded in self.graded if graded.grade.applicable]

    @property
    def mean(self) -> float | None:
        """The mean of the rewards; None where the grader applies to no answer."""
        return _mean(graded.grade.reward for graded in self.applicable)

    @property
    def parts(self) -> dict[str, float]:
        """The mean of each grader in a multi grader."""
        names = dict.fromkeys(name for graded in self.applicable for name in graded.grade.parts)
        return {name: _mean(graded.grade.parts[name] for graded in self.applicable) or 0.0 for name in names}

    @property
    def errors(self) -> dict[str, int]:
        """The number of answers with each error."""
        counted = Counter(name for graded in self.graded for name, value in graded.grade.errors.items()
                          if value is True)
        return dict(counted.most_common())

    @property
    def pass_at_k(self) -> dict[str, float]:
        """The pass@k for k = 1, and for the number of answers that every row has."""
        rows: dict[int, list[bool]] = {}
        for graded in self.applicable:
            rows.setdefault(graded.row, []).append(graded.grade.reward >= self.passes_at - ROUNDING)
        counts = [(len(passed), sum(passed)) for passed in rows.values()]
        most = min((n for n, _ in counts), default=0)
        return {str(k): pass_at_k(counts, k) for k in sorted({1, most}) if most}

    def worst(self, count: int) -> list[GradedSample]:
        """The answers with the lowest rewards, in the order of the file where these are equal."""
        return sorted(self.applicable, key=lambda graded: graded.grade.reward)[:count]

    def to_json(self) -> dict[str, Any]:
        """The JSON of the results. scores: None where the grader does not apply."""
        return {"scores": [graded.to_json()["reward"] for graded in self.graded], "mean": self.mean,
                "passes_at": self.passes_at, "pass_at_k": self.pass_at_k, "parts": self.parts, "errors": self.errors}


def pass_at_k(passed: Sequence[tuple[int, int]], k: int) -> float:
    """The mean over prompts of 1 - C(n-c, k) / C(n, k), with (n answers, c of which pass) a prompt: an estimate without
    bias (Chen et al. 2021, arXiv 2107.03374, equation 1). Every n must be k or more.
    """
    if not passed or k < 1 or min(n for n, _ in passed) < k:
        raise ValueError(f"pass@{k} of {len(passed)} prompts")
    return sum(1 - math.comb(n - c, k) / math.comb(n, k) for n, c in passed) / len(passed)


def _mean(values: Iterable[float]) -> float | None:
    found = list(values)
    return sum(found) / len(found) if found else None
