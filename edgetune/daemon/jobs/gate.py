"""The gate. The active adapter, or the base, and a new adapter answer the same rows through llama.cpp, as they are
served. Then decide.py says whether the new one becomes active.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import asdict
from itertools import takewhile
from typing import Any

import numpy as np

from ...data import preferences, prompts
from ...data.dataset import load_rows
from ...data.preferences import is_pair
from ...data.rows import Row
from ...errors import DataError
from ...evaluation.canary import drift
from ...evaluation.graders.llama_judge import LlamaJudge
from ...evaluation.pairs import margins_of, served_logp
from ...evaluation.served import Answer, exact_match, served_loss
from ...serving.llama import LlamaModel
from ...training.answered import Answer as RewardedAnswer
from ...training.judge import EngineJudge
from ..options import Limits
from .decide import Findings, Verdict, decide
from .exam import Asked, Exam, Score
from .recipe import check_judgeable
from .rewarded import Rewarding

PROSE_WORDS = 30  # longer texts are compared by loss, not word for word, unless they are JSON


def evaluate(served: LlamaModel, exam: Exam, old: Asked, new: Asked, limits: Limits | None = None,
             on_asked: Callable[[int, int], None] | None = None) -> Verdict:
    """Decides whether `new` replaces `old`, which has no name where no adapter is active.

    limits: on unrelated text; None: there are none. on_asked: called with the number of rows answered until now, and of
    all. Raises DataError without rows, and for one that has no answer to compare.
    """
    rows = exam.rows
    if not rows:
        raise DataError("there are no rows to evaluate", "hold some out")
    for row in rows:
        if not exam.is_rewarded(row):
            check_judgeable(row)
    examiner = Examiner(served, exam, on_asked)
    examiner.planned = len(examiner.missing(old, rows)) + len(examiner.missing(new, [*rows, *exam.corrected]))
    before = examiner.scores(old, rows)
    after = examiner.scores(new, rows)
    corrected = examiner.scores(new, exam.corrected)
    limits = limits or Limits()
    canary = drift(served, new.name, [exam.canary]) if exam.canary and limits != Limits() else None
    found = Findings(before, after, exam.rounds, old.name is not None, canary, corrected, exam.tests_before)
    verdict = decide(found, limits)
    verdict.scores.update((key, asdict(new.scores[key])) for key in map(exam.key, [*rows, *exam.corrected]))
    return verdict


class Examiner:
    """Lets adapters of `served` answer. planned: rows to answer. on_asked: called with those done, and `planned`."""

    def __init__(self, served: LlamaModel, exam: Exam, on_asked: Callable[[int, int], None] | None = None) -> None:
        self.served = served
        self.exam = exam
        self.planned = 0
        self._asked = 0
        self._on_asked = on_asked or (lambda _done, _of: None)

    def scores(self, adapter: Asked, rows: Sequence[Row]) -> list[Score]:
        """Returns the Scores of each row. A text, and a row longer than max_length or the context, is not answered."""
        missing = self.missing(adapter, rows)
        self.planned = max(self.planned, self._asked + len(missing))
        self.served.use(adapter.name)
        rewarded = {key: row for key, row in missing.items() if self.exam.is_rewarded(row)}
        others = {key: row for key, row in missing.items() if key not in rewarded}
        adapter.scores |= zip(others, self._ask([*others.values()]), strict=True)
        if self.exam.rewarding and rewarded:
            adapter.scores |= zip(rewarded, self._reward([*rewarded.values()], self.exam.rewarding), strict=True)
        return [adapter.scores[self.exam.key(row)] for row in rows]

    def missing(self, adapter: Asked, rows: Sequence[Row]) -> dict[str, Row]:
        """Returns the rows that it has not answered yet, each once."""
        return {key: row for row in rows if (key := self.exam.key(row)) not in adapter.scores}

    def _ask(self, rows: Sequence[Row]) -> list[Score]:
        options: dict[str, Any] = {"system": self._system, "max_length": self._max_length}
        found = []
        answerable = []
        for i, row in enumerate(rows):
            if is_pair(row):
                found.append(self._preference(row, options))
                self._count()
                continue
            try:
                data = load_rows([row], self.served.tokenizer, **options)
            except DataError:  # nothing of its answer is within max_length
                found.append(Score(None))
                self._count()
                continue
            found.append(Score(served_loss(self.served, data)[0]))
            if data.asking and not data.truncated:
                answerable.append(i)
            else:
                self._count()
        if answerable:
            data = load_rows([rows[i] for i in answerable], self.served.tokenizer, **options)
            answers = exact_match(self.served, data, system=self._system, on_answer=self._count)
            for i, answer in zip(answerable, answers, strict=True):
                prose = answer.parsed is None and len(answer.expected.split()) > PROSE_WORDS
                found[i] = Score(found[i].loss, answer.correct, _reach(answer), answer.ended, answer.parsed, prose)
        return found

    def _reward(self, rows: Sequence[Row], rewarding: Rewarding) -> list[Score]:
        """Returns the rewards of greedy answers; a prompt that leaves no room for an answer has none."""
        asked = {i: tokens for i, row in enumerate(rows) if (tokens := self._prompt(row))}
        places = list(asked)
        budgets = [rewarding.objective.answer_tokens(len(tokens), self._max_length) for tokens in asked.values()]
        answers: dict[int, RewardedAnswer] = {}
        for number, text in self.served.complete(list(asked.values()), budgets):
            tokens = self.served.tokenizer.encode(text, continues=True)
            ended = len(tokens) < budgets[number]
            answers[places[number]] = RewardedAnswer(text, json.dumps(rows[places[number]], ensure_ascii=False), ended,
                                                     tokens)
            self._count()
        if rewarding.rewards.needs_model:
            rewarding.rewards.use_model(LlamaJudge(self.served, EngineJudge.name))
            self.served.use(None)  # no adapter scores its own answers
        rewards = dict(zip(answers, rewarding.earned(list(answers.values())), strict=True))
        return [Score(None, reward=rewards.get(i)) for i in range(len(rows))]

    def _prompt(self, row: Row) -> list[int]:
        """Returns the tokens of a prompt; none where they leave no room for an answer."""
        try:
            data = load_rows([row], self.served.tokenizer, max_length=self._max_length, system=self._system,
                             parser=prompts)
        except DataError:
            return []
        tokens: list[int] = data.examples[0].tokens.tolist()
        return tokens if len(tokens) < self._max_length else []

    @property
    def _system(self) -> str | None:
        """The message that the active adapter is served with; else that of the training."""
        return self.served.system_of(self.served.active) or self.exam.system

    @property
    def _max_length(self) -> int:
        return min(self.exam.max_length, self.served.context)

    def _preference(self, row: Row, options: dict[str, Any]) -> Score:
        try:
            data = load_rows([row], self.served.tokenizer, parser=preferences, **options)
        except DataError:  # nothing of one answer is within max_length
            return Score(None, pair=True)
        margin = float(margins_of(served_logp(self.served, data))[0])
        return Score(float(np.logaddexp(0, -margin)), margin > 0, pair=True)

    def _count(self) -> None:
        self._asked += 1
        self._on_asked(self._asked, self.planned)


def _reach(answer: Answer) -> float:
    expected = answer.expected.strip()
    given = answer.answer.strip()
    same = sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], zip(expected, given, strict=False)))
    return 1.0 if answer.correct else same / max(len(expected), 1)
