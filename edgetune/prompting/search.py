"""The search: examples, then instructions, then examples that the model answers right; the best prompts are answered.

Candidates are narrowed by the likelihood of the right answers, which takes one pass over each row: the better half is
scored on twice as many rows, and so on. The few that are left are compared by exact answers. All of this is on the rows
that choose.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace

from ..data.rows import Row
from ..errors import UsageError
from ..serving.nearest import NearestRows
from ..serving.prompt_file import Prompt
from .candidates import NOTHING, Candidate, Tried, bootstrapped, with_examples
from .instructions import by_rules
from .options import PromptOptions
from .scoring import Scorer
from .split import Parts

FIRST = 16  # rows of the first round of a narrowing
KEPT = 4  # candidates that a stage leaves
SHOTS = 2  # sets of examples with which instructions are tried
ASKED = 48  # rows of the pool that the model answers, to find examples that it answers right
Show = Callable[[str, float, float], None]  # what is done, how much of it, of how much
Propose = Callable[[], Sequence[str]]


@dataclass
class Search:
    """A search over the rows of `parts`. near: those of the pool by nearness; None: without. propose: asks the model
    for instructions. show: is called meanwhile.
    """

    scorer: Scorer
    parts: Parts
    near: NearestRows | None
    options: PromptOptions
    propose: Propose
    show: Show

    def __post_init__(self) -> None:
        self.tried: list[Tried] = []

    def run(self) -> Tried:
        """The best prompt by the rows that choose. `tried` has all others too. Raises the errors of the scorer."""
        name = "the system message" if self.options.system else "no instruction"
        base = Candidate(name, NOTHING, Prompt(self.options.system))
        shots = self._narrowed("examples", with_examples(base, self.parts.pool, self.options, self.near is not None))
        texts = {**by_rules(self.parts.pool), **self._proposed()}
        instructed = [one.candidate.instructed(name, text) for one in shots[:SHOTS] for name, text in texts.items()]
        best = self._narrowed("instructions", instructed, shots)
        best = self._narrowed("examples that are answered right", self._answered_right(best[0].candidate), best)
        return self._answered([*best, shots[0], self.tried[0]])

    def _proposed(self) -> dict[str, str]:
        if not self.options.proposals:
            return {}
        self.show("asking the model for instructions", 0, 1)
        self.scorer.rest()
        found = self.propose()
        self.show("asking the model for instructions", 1, 1)
        return {f"proposal {number}": text for number, text in enumerate(found, start=1)}

    def _answered_right(self, best: Candidate) -> list[Candidate]:
        if self.options.examples < KEPT:
            return []
        rows = self.parts.pool[:ASKED]
        self.show("answering possible examples", 0, len(rows))
        found = self.scorer.answers(best.opened(self.near), rows)
        self.show("answering possible examples", len(rows), len(rows))
        right = [row for row, answer in zip(rows, found, strict=True) if answer.correct]
        plain = replace(best, prompt=replace(best.prompt, examples=[]))
        return bootstrapped(plain, right, self.options)

    def _narrowed(self, what: str, candidates: Sequence[Candidate], earlier: Iterable[Tried] = ()) -> list[Tried]:
        """The KEPT best of candidates and of those that were tried earlier, the best first, scored on all rows."""
        fresh = [Tried(candidate) for candidate in candidates]
        self.tried += fresh
        running = [*earlier, *fresh]
        rows = self.parts.select
        count = min(FIRST, len(rows))
        while True:
            for number, tried in enumerate(running):
                self.show(f"{what}: {len(running)} prompts on {count} rows", number, len(running))
                self._score(tried, count)
            if not any(tried.fits for tried in running):
                raise UsageError(f"longest is {self.options.longest} tokens, and a row has more without any prompt",
                                 "raise --longest")
            running = sorted((tried for tried in running if tried.fits), key=lambda tried: tried.loss_of(count))
            if count == len(rows):
                return running[:KEPT]
            running = running[:max(KEPT, len(running) // 2)]
            count = min(2 * count, len(rows))

    def _score(self, tried: Tried, count: int) -> None:
        rows: Sequence[Row] = self.parts.select[len(tried.scores):count]
        if not rows or not tried.fits:
            return
        found = self.scorer.losses(tried.candidate.opened(self.near), rows)
        tried.fits = found is not None and max(score.tokens for score in found) <= self.options.longest
        tried.scores += found or []

    def _answered(self, best: Sequence[Tried]) -> Tried:
        """The best by exact answers: the best ones by likelihood, the best without an instruction, and the prompt as it
        was.
        """
        finalists = list({id(tried): tried for tried in best}.values())
        rows = self.parts.select
        for number, tried in enumerate(finalists):
            self.show(f"answers with {len(finalists)} prompts to {len(rows)} rows", number, len(finalists))
            self._score(tried, len(rows))
            found = self.scorer.answers(tried.candidate.opened(self.near), rows)
            tried.exact = sum(answer.correct for answer in found) / len(found)
        return chosen(finalists, len(rows))


def chosen(finalists: Sequence[Tried], rows: int) -> Tried:
    """The shortest of the prompts that are as good as the best within one standard error (Breiman et al., 1984); where
    none gives a right answer, the likeliest. finalists: with exact answers to `rows` rows.
    """
    best = min(finalists, key=lambda tried: tried.rank)
    if not best.exact:
        return best
    share = (best.exact * rows + 1) / (rows + 2)  # of 0 or all right answers the error is not 0
    error = math.sqrt(share * (1 - share) / rows)
    near = [tried for tried in finalists if (tried.exact or 0.0) >= best.exact - error]
    return min(near, key=lambda tried: (tried.tokens, tried.rank))
