"""Evaluates a model on held-out rows: the loss of their answers, and the share of exactly right answers.

Both are measured as the model is served: through llama.cpp, with the adapter in use.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from itertools import islice
from typing import Any

import numpy as np

from ..data.around import Instruction, instructed
from ..data.dataset import Dataset
from ..data.packing import is_supervised
from ..data.question import question_text
from ..data.rows import Row, answered_messages, prompt_of
from ..errors import DataError
from ..serving.llama import LlamaModel
from .acceptance import wilson
from .judge import differences, is_json, may_become, same
from .question_scores import QuestionScores

SHOWN_TOKENS = 16  # of an answer that is certainly wrong: a line for people


@dataclass(frozen=True)
class GradedAnswer:
    """The generated answer to one row, and the expected one. ended: whether the model ended it before the limit.

    prompt: all that the model was given. question: what the row asks, as it is written there. tokens: of the answer,
    where they are known.
    """

    prompt: str
    expected: str
    answer: str
    correct: bool
    ended: bool
    question: str
    tokens: Sequence[int] = ()

    @property
    def parsed(self) -> bool | None:
        """Returns whether the answer is JSON; None where the row's is not."""
        return is_json(self.answer) if is_json(self.expected) else None

    @property
    def differences(self) -> list[str]:
        """The errors of an answer that should be JSON; see `judge.differences`."""
        return differences(self.expected, self.answer)


@dataclass(frozen=True)
class Scores:
    """The result of an evaluation. Counts are of rows and of supervised tokens; the loss is natural.

    exact: share of the exact_rows answers that are right, None if none was generated. parsed: share of answers that
    are JSON among the rows whose expected answer is, None without such rows. structured, structured_parsed: the same of
    answers that are held to the schema of the adapter's rows, None where it has none. reciprocal_rank: of the right
    passage among all, in the mean, where vectors are evaluated. sampled_tokens: of all answers to a row, in the mean,
    where one of several was chosen.
    """

    engine: str
    rows: int
    tokens: int
    loss: float
    exact: float | None = None
    exact_rows: int = 0
    parsed: float | None = None
    structured: float | None = None
    structured_parsed: float | None = None
    reciprocal_rank: float | None = None
    sampled_tokens: float | None = None

    @property
    def perplexity(self) -> float:
        return math.exp(min(self.loss, 700.0))

    @property
    def interval(self) -> tuple[float, float] | None:
        """The 95 % interval of `exact` by Wilson: the plausible share over all rows of this kind."""
        return None if self.exact is None else wilson(round(self.exact * self.exact_rows), self.exact_rows)

    def to_json(self) -> dict[str, Any]:
        return {**asdict(self), "perplexity": self.perplexity, "exact_interval": self.interval}


@dataclass(frozen=True)
class Loss:
    """The loss of one example: the sum of -w log p over its supervised tokens, the sum of |w|, and their number."""

    total: float
    weight: float
    tokens: int

    @property
    def mean(self) -> float:
        """Nats a token; an example without weight has none."""
        return self.total / self.weight if self.weight else math.nan


@dataclass(frozen=True)
class Grades:
    """A model's scores, and what they were computed from: the loss of each example, and the answers to the rows.
    questions: the scores of each typed question, of an encoder that learned some.
    """

    scores: Scores
    losses: list[Loss]
    answers: list[GradedAnswer]
    questions: Sequence[QuestionScores] = ()


def grade(served: LlamaModel, dataset: Dataset, *, answers: bool = True, system: Instruction = None,
          max_tokens: int | None = None, limit: int | None = None, structured: bool = True) -> Grades:
    """Held-out loss, and with `answers` the exact match of the first `limit` rows, with the adapter in use.

    structured: also of answers that are held to the schema of the adapter's rows, where it has one.
    """
    losses = example_losses(served, dataset)
    loss, tokens = mean_loss(losses)
    given = exact_match(served, dataset, system=system, max_tokens=max_tokens, limit=limit) if answers else []
    grammar = served.grammar_of(served.active) if answers and structured else ""
    held = exact_match(served, dataset, system=system, max_tokens=max_tokens, limit=limit, grammar=grammar, free=given
                       ) if grammar else []
    scores = Scores(served.engine, len(dataset.examples), tokens, loss, exact_share(given), len(given),
                    parsed_share(given), exact_share(held), parsed_share(held))
    return Grades(scores, losses, given)


def served_loss(served: LlamaModel, dataset: Dataset) -> tuple[float, int]:
    """(loss, tokens) by llama.cpp: -sum(w logp) / sum |w| over the supervised tokens, and their number.

    The same rows give the same bits. Raises EdgetuneError for a row longer than the context.
    """
    return mean_loss(example_losses(served, dataset))


def example_losses(served: LlamaModel, dataset: Dataset) -> list[Loss]:
    """The loss of each example, with the adapter in use."""
    served.reset()
    losses = []
    for example in dataset.examples:
        wanted = is_supervised(example.weights)
        logp = served.logprobs(example.tokens.tolist(), wanted)
        total = -float(np.dot(example.weights.astype(np.float64), logp))
        losses.append(Loss(total, float(np.abs(example.weights).sum(dtype=np.float64)), int(wanted.sum())))
    return losses


def mean_loss(losses: Sequence[Loss]) -> tuple[float, int]:
    """(nats a token, tokens) of examples together. Raises DataError where nothing is supervised."""
    total = 0.0
    weight = 0.0
    for loss in losses:
        total += loss.total
        weight += loss.weight
    if weight == 0.0:
        raise DataError("the data has no token to evaluate by", "give it rows with an answer")
    return total / weight, sum(loss.tokens for loss in losses)


def exact_match(served: LlamaModel, dataset: Dataset, *, system: Instruction = None, max_tokens: int | None = None,
                limit: int | None = None, grammar: str = "", free: Sequence[GradedAnswer] = (),
                shortens: bool = False, on_answer: Callable[[], None] | None = None) -> list[GradedAnswer]:
    """Greedy answers to the first `limit` rows (None: all), in the order of the rows; none for plain text.

    max_tokens: None allows each answer twice the tokens of the expected one and 16 more, because a longer one is wrong.
    grammar: GBNF that all obey. free: the same answers without it; those that obey it are not computed again, because
    they are the same with it. shortens: an answer that should be JSON, and cannot become it, ends after SHOWN_TOKENS.
    on_answer: called after each.
    """
    rows = dataset.asking[:limit]
    pairs = [prompt_of(row, served.tokenizer, system) for row in rows]
    budgets = [max_tokens or 2 * len(served.tokenizer.encode(expected)) + 16 for _, expected in pairs]
    found = {i: answer for i, answer in enumerate(free) if served.obeys(answer.tokens, grammar, budgets[i])}
    asked = [i for i in range(len(pairs)) if i not in found]

    def is_lost(number: int, begun: list[int]) -> bool:
        expected = pairs[asked[number]][1]
        return shortens and len(begun) == SHOWN_TOKENS and is_json(expected) and not may_become(
            expected, served.printed_text(begun))

    for number, tokens in served.complete_tokens([pairs[i][0] for i in asked], [budgets[i] for i in asked], grammar,
                                                 is_lost):
        i = asked[number]
        prompt, expected = pairs[i]
        text = served.printed_text(tokens)
        ended = len(tokens) < budgets[i] and not is_lost(number, tokens)
        found[i] = GradedAnswer(prompt, expected, text, same(expected, text), ended, question_text(rows[i]), tokens)
        if on_answer:
            on_answer()
    return [found[i] for i in range(len(pairs))]


def exact_share(answers: Sequence[GradedAnswer]) -> float | None:
    """The share of right answers; None without answers."""
    return share([answer.correct for answer in answers])


def parsed_share(answers: Sequence[GradedAnswer]) -> float | None:
    """The share that is JSON of the answers that should be; None where none should."""
    return share([answer.parsed for answer in answers if answer.parsed is not None])


def share(flags: list[bool]) -> float | None:
    return sum(flags) / len(flags) if flags else None


TOGETHER = 8  # questions in progress
Messages = list[dict[str, Any]]
Ask = Callable[[Messages, Sequence[dict[str, Any]], int], str]  # messages, tools, tokens at most; the answer


def asked_match(rows: Iterable[Row], ask: Ask, system: Instruction = None,
                limit: int | None = None) -> list[GradedAnswer]:
    """The answers of a remote model, of which neither tokens nor loss are known, to the first `limit` rows (None: all),
    in their order; an answer is cut if it is certainly wrong.

    Raises DataError for a row whose answer is a call of a tool, and what `ask` raises.
    """
    questions = [_question(row, system) for row in islice(rows, limit)]

    def answer(question: tuple[Row, Messages, Sequence[dict[str, Any]], str]) -> GradedAnswer:
        row, messages, tools, expected = question
        text = ask(messages, tools, 2 * len(expected.encode()) + 16)  # a token has a byte at least
        return GradedAnswer("", expected, text, same(expected, text), True, question_text(row))

    with ThreadPoolExecutor(TOGETHER) as pool:
        return list(pool.map(answer, questions))


def asked_scores(engine: str, rows: int, answers: Sequence[GradedAnswer]) -> Scores:
    """No tokens, and a loss that is not known."""
    return Scores(engine, rows, 0, math.nan, exact_share(answers), len(answers), parsed_share(answers))


def _question(row: Row, system: Instruction) -> tuple[Row, Messages, Sequence[dict[str, Any]], str]:
    """(the row, messages up to the last answer, tools, that answer)"""
    assert not isinstance(row, str)
    messages = answered_messages(row)
    if not isinstance(expected := messages[-1].get("content"), str):
        raise DataError("a row's answer is no text", "leave --url out: calls of tools are evaluated where the model is")
    return row, _asked(instructed(messages, system)), row.get("tools") or (), expected.strip()


def _asked(row: Messages) -> Messages:
    """The messages before the answer of a row, without what says that they are not learned."""
    return [{key: value for key, value in message.items() if key != "weight"} for message in row[:-1]]
