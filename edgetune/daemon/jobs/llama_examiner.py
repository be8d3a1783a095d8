"""The examiner of a model that writes text: adapters answer through llama.cpp, as they are served."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from itertools import takewhile
from typing import Any

import numpy as np

from ...data import preferences, prompts
from ...data.around import Instruction
from ...data.dataset import load_rows
from ...data.packing import is_supervised
from ...data.preferences import is_pair
from ...data.rows import Row
from ...errors import DataError
from ...evaluation.canary import Drift, drift
from ...evaluation.graders.llama_judge import LlamaJudge
from ...evaluation.judge import is_json
from ...evaluation.pairs import margins_of, served_logp
from ...evaluation.served import GradedAnswer, exact_match, served_loss
from ...serving.llama import LlamaModel
from ...training.rewards import EngineJudge, RewardedAnswer
from .exam import Examiner, GateExam, RowScore
from .rewards import Rewarding

REPLY = 96  # tokens of an answer that nobody rated; two that are equal so far count as equal
PROSE_WORDS = 30  # longer texts are compared by loss, not word for word, unless they are JSON


class LlamaExaminer(Examiner):
    """Lets adapters of `served` answer."""

    def __init__(self, served: LlamaModel, exam: GateExam, on_asked: Callable[[int, int], None] | None = None) -> None:
        super().__init__(exam, on_asked)
        self.served = served

    def answered(self, adapter: str | None, rows: dict[str, Row]) -> dict[str, RowScore]:
        """Returns Scores. A text, and a row longer than max_length or the context, is not answered."""
        self.served.use(adapter)
        rewarded = {key: row for key, row in rows.items() if self.exam.is_rewarded(row)}
        others = {key: row for key, row in rows.items() if key not in rewarded}
        found = dict(zip(others, self._ask([*others.values()]), strict=True))
        if self.exam.rewarding and rewarded:
            found |= zip(rewarded, self._reward([*rewarded.values()], self.exam.rewarding), strict=True)
        return found

    def replies(self, adapter: str | None, rows: Sequence[Row]) -> list[str | None]:
        """Returns greedy answers of REPLY tokens at most. A longer text is not compared word for word, so it is None,
        and so is the answer to a question that leaves no room for one.
        """
        self.served.use(adapter)
        asked = {i: tokens for i, row in enumerate(rows) if (tokens := self._prompt(row))}
        places = [*asked]
        budgets = [min(REPLY, self._max_length - len(tokens)) for tokens in asked.values()]
        found: list[str | None] = [None] * len(rows)
        for number, text in self.served.complete([*asked.values()], budgets) if asked else ():
            is_prose = not is_json(text) and len(text.split()) > PROSE_WORDS
            found[places[number]] = None if is_prose else text.strip()
            self.count()
        for _ in range(len(rows) - len(asked)):
            self.count()
        return found

    def drift(self, adapter: str | None) -> Drift | None:
        return drift(self.served, adapter, [self.exam.canary]) if self.exam.canary else None

    def answer_tokens(self, adapter: str | None, row: Row) -> int:
        """Returns the tokens of a row's right answer under an adapter; 0: it has none, or is not read whole."""
        self.served.use(adapter)
        if self.exam.is_rewarded(row) or is_pair(row):
            return 0
        try:
            data = load_rows([row], self.served.tokenizer, system=self._system, max_length=self._max_length)
        except DataError:
            return 0
        return 0 if data.truncated else sum(int(is_supervised(one.weights).sum()) for one in data.examples)

    def _ask(self, rows: Sequence[Row]) -> list[RowScore]:
        options: dict[str, Any] = {"system": self._system, "max_length": self._max_length}
        found = []
        answerable = []
        for i, row in enumerate(rows):
            if is_pair(row):
                found.append(self._preference(row, options))
                self.count()
                continue
            try:
                data = load_rows([row], self.served.tokenizer, **options)
            except DataError:  # nothing of its answer is within max_length
                found.append(RowScore(None))
                self.count()
                continue
            found.append(RowScore(served_loss(self.served, data)[0]))
            if data.asking and not data.truncated:
                answerable.append(i)
            else:
                self.count()
        if answerable:
            data = load_rows([rows[i] for i in answerable], self.served.tokenizer, **options)
            answers = exact_match(self.served, data, system=self._system, on_answer=self.count)
            for i, answer in zip(answerable, answers, strict=True):
                prose = answer.parsed is None and len(answer.expected.split()) > PROSE_WORDS
                found[i] = RowScore(found[i].loss, answer.correct, _reach(answer), answer.ended, answer.parsed, prose)
        return found

    def _reward(self, rows: Sequence[Row], rewarding: Rewarding) -> list[RowScore]:
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
            self.count()
        if rewarding.rewards.needs_model:
            rewarding.rewards.use_model(LlamaJudge(self.served, EngineJudge.name))
            self.served.use(None)  # no adapter scores its own answers
        rewards = dict(zip(answers, rewarding.earned(list(answers.values())), strict=True))
        return [RowScore(None, reward=rewards.get(i)) for i in range(len(rows))]

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
    def _system(self) -> Instruction:
        """The message that the active adapter is served with; else that of the training."""
        return self.served.instruction_of(self.served.active) or self.exam.system

    @property
    def _max_length(self) -> int:
        return min(self.exam.max_length, self.served.context)

    def _preference(self, row: Row, options: dict[str, Any]) -> RowScore:
        try:
            data = load_rows([row], self.served.tokenizer, parser=preferences, **options)
        except DataError:  # nothing of one answer is within max_length
            return RowScore(None, pair=True)
        margin = float(margins_of(served_logp(self.served, data))[0])
        return RowScore(float(np.logaddexp(0, -margin)), margin > 0, pair=True)


def _reach(answer: GradedAnswer) -> float:
    expected = answer.expected.strip()
    given = answer.answer.strip()
    same = sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], zip(expected, given, strict=False)))
    return 1.0 if answer.correct else same / max(len(expected), 1)
