"""Prompts that are tried, by names that people read, and what is known of each."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from ..data.around import Instruction
from ..data.rows import Row
from ..evaluation.acceptance import LOSS_DIGITS
from ..serving.nearest import NearestRows
from ..serving.prompt_file import NearestExamples, OpenPrompt, Prompt
from .examples import spread
from .options import PromptOptions
from .scoring import RowScore

NOTHING = "no examples"


@dataclass(frozen=True)
class Candidate:
    """instruction, examples: names of the two parts of the prompt."""

    instruction: str
    examples: str
    prompt: Prompt

    @property
    def name(self) -> str:
        """Says what it is, for people."""
        return f"{self.instruction}, {self.examples}"

    def instructed(self, name: str, text: str) -> Candidate:
        """The same examples after another instruction."""
        return Candidate(name, self.examples, replace(self.prompt, system=text))

    def opened(self, near: NearestRows | None) -> Instruction:
        """What is put around rows; near: the rows among which the nearest are found."""
        return OpenPrompt(self.prompt, nearest=near) if self.prompt.to_json() else None


@dataclass
class Tried:
    """A candidate with its scores on the rows that choose, as many as were needed. exact: share of right answers to all
    of them; None where they were not asked.
    """

    candidate: Candidate
    scores: list[RowScore] = field(default_factory=list)
    exact: float | None = None
    fits: bool = True

    def loss_of(self, count: int) -> float:
        """Nats a token, in the mean over the first rows; prompts are compared on the same ones."""
        known = self.scores[:count]
        return sum(score.loss for score in known) / len(known) if known else math.inf

    @property
    def loss(self) -> float:
        """The same over all rows that were scored."""
        return self.loss_of(len(self.scores))

    @property
    def tokens(self) -> float:
        """Tokens of a request, in the mean over rows."""
        return sum(score.tokens for score in self.scores) / len(self.scores) if self.scores else 0.0

    @property
    def rank(self) -> tuple[float, float, float]:
        """The better, the smaller: right answers, then likelier ones, then shorter prompts."""
        return -(self.exact or 0.0), round(self.loss, LOSS_DIGITS), self.tokens

    def to_json(self) -> dict[str, Any]:
        """What a program reads of it."""
        return {"instruction": self.candidate.instruction, "examples": self.candidate.examples,
                "loss": self.loss if self.scores else None, "exact": self.exact, "rows": len(self.scores),
                "tokens": round(self.tokens, 1), "fits": self.fits}


def with_examples(base: Candidate, pool: Sequence[Row], options: PromptOptions, has_encoder: bool) -> list[Candidate]:
    """The instruction of a candidate without examples, with the nearest ones and with random sets of other sizes."""
    found = [base]
    for count in _powers(options.nearest) if has_encoder else ():
        nearest = NearestExamples("pool", count, options.encoder)
        found.append(replace(base, examples=f"{count} nearest", prompt=replace(base.prompt, nearest=nearest)))
    for count in _powers(options.examples)[2:] or _powers(options.examples)[-1:]:
        for number in range(1, options.sets + 1):
            rows = spread(pool, count, f"{options.seed} {count} {number}")
            found.append(replace(base, examples=f"{count} of set {number}",
                                 prompt=replace(base.prompt, examples=rows)))
    return found


def bootstrapped(base: Candidate, right: Sequence[Row], options: PromptOptions) -> list[Candidate]:
    """The instruction of a candidate with examples that the model answered right (bootstrapped demonstrations, as in
    DSPy, Khattab et al., 2023), alone and before the nearest ones.
    """
    found = []
    for count in _powers(min(options.examples, len(right)))[2:]:
        rows = spread(right, count, f"{options.seed} right {count}")
        alone = replace(base.prompt, examples=rows, nearest=None)
        found.append(replace(base, examples=f"{count} answered right", prompt=alone))
        if base.prompt.nearest:
            found.append(replace(base, examples=f"{count} answered right, {base.examples}",
                                 prompt=replace(alone, nearest=base.prompt.nearest)))
    return found


def _powers(most: int) -> list[int]:
    """1, 2, 4, ... up to `most`, and `most` itself."""
    found = [1 << i for i in range(most.bit_length())]
    return sorted({*found, most} - {0}) if most else []
