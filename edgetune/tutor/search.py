"""How far to go from the adapter that is published towards the one that a round trained.

A lesson of the model's own answers often has its direction right and its length wrong. So points between are measured
on questions that were set apart for this, which neither learn nor judge. All of the way is gone unless less of it is
better on enough of them that this is hardly chance: the best of three points that differ by chance is mostly the
shortest, from which nothing is learned.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ..adapters import store
from ..adapters.lora import Lora
from ..adapters.mixed import between
from ..evaluation.acceptance import Paired, flip_test
from .agreed import nearness
from .answering import GREEDY, answers_to, mean_logp
from .evaluating import graded
from .questions import Question
from .setting import Setting

SHARES = (1.0, 0.5, 0.25)
CHANCE = 0.1
FEWEST = 4  # questions, before they say anything
MOST = 64  # questions: of fewer, what is better is too often chance


@dataclass(frozen=True)
class Point:
    """share: of the way. rewards: of greedy answers, where a grader judges, or what they have in common with others
    (agreed.py). logps: of right answers, nats a token; they decide where there are no rewards, as what few answers have
    in common with right ones is mostly chance.
    """

    share: float
    rewards: Sequence[float]
    logps: Sequence[float]

    def to_json(self) -> dict[str, Any]:
        return {"share": self.share, "reward": mean(self.rewards), "logp": mean(self.logps)}

    def is_surely_better(self, other: Point) -> bool:
        """By a sign test over rewards, or a randomization test over log-probabilities."""
        if self.rewards:
            return Paired.of(other.rewards, self.rewards).p_better <= CHANCE
        differences = [a - b for a, b in zip(self.logps, other.logps, strict=True)]
        return flip_test(differences) <= CHANCE


def mean(values: Sequence[float]) -> float:
    """0 of none."""
    return float(np.mean(values)) if values else 0.0


def search(setting: Setting, agreed: Sequence[Question], published: Path | None, trained: Path,
           out: Path) -> dict[str, Any]:
    """Writes a point between two adapters to a new folder. {"share", "points"}. agreed: questions that answers
    behind labelled rows judge.
    """
    first = setting.pairs(published)
    second = setting.pairs(trained)
    questions = [*setting.pool.dev[:MOST], *agreed]
    points = []
    if len(questions) >= FEWEST:
        points = [measured(setting, questions, between(first, second, share), share) for share in SHARES]
    best = points[0] if points else Point(1.0, (), ())
    for shorter in points[1:]:
        best = shorter if shorter.is_surely_better(best) else best
    record = store.read_run(trained)
    if not out.exists():
        store.save_adapter(out, between(first, second, best.share), setting.bundle.gguf,
                           {**record, "share": best.share})
    store.save_schema(out, store.read_schema(trained))
    return {"share": best.share, "points": [point.to_json() for point in points]}


def measured(setting: Setting, questions: Sequence[Question], pairs: Lora, share: float) -> Point:
    known = [question for question in questions if question.reference]
    prompts = [question.prompt_tokens(setting.tokenizer, setting.system) for question in known]
    logps = mean_logp(setting, prompts, [question.reference for question in known], pairs)
    asked = questions if setting.grader else [question for question in questions if question.agreed]
    said = answers_to(setting, [question.prompt_tokens(setting.tokenizer, setting.system) for question in asked], pairs,
                      temperature=GREEDY, max_tokens=setting.options.max_tokens, seed=0) if asked else []
    rewards = [nearness(question, of[0].text) if question.reference or question.agreed else grades[0].reward
               for question, of, grades in zip(asked, said, graded(setting, asked, said), strict=True)]
    return Point(share, rewards, logps)
