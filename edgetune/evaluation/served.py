"""How good a model is on held-out rows: the loss of their answers, and the share of exactly right answers.

Both are measured as the model is served: through llama.cpp, with the adapter in use.
"""

from __future__ import annotations

import json
import math
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from ..data.dataset import Dataset
from ..data.packing import is_supervised
from ..data.rows import prompt_of
from ..errors import DataError
from ..serving.llama import LlamaModel

_NOT_JSON = object()


@dataclass(frozen=True)
class Answer:
    """The generated answer to one row, and the expected one. ended: whether the model ended it before the limit."""

    prompt: str
    expected: str
    answer: str
    correct: bool
    ended: bool

    @property
    def parsed(self) -> bool | None:
        """Whether the answer is JSON; None where the row's is not."""
        return None if _parse(self.expected) is _NOT_JSON else _parse(self.answer) is not _NOT_JSON


@dataclass(frozen=True)
class Scores:
    """The result of an evaluation. Counts are of rows and of supervised tokens; the loss is natural.

    exact: share of the exact_rows answers that are right, None if none was generated. parsed: share of answers that
    are JSON among the rows whose expected answer is, None without such rows.
    """

    engine: str
    rows: int
    tokens: int
    loss: float
    exact: float | None = None
    exact_rows: int = 0
    parsed: float | None = None

    @property
    def perplexity(self) -> float:
        return math.exp(min(self.loss, 700.0))

    def to_json(self) -> dict[str, Any]:
        return {**asdict(self), "perplexity": self.perplexity}


def evaluate(served: LlamaModel, dataset: Dataset, *, answers: bool = True, system: str | None = None,
             max_tokens: int | None = None, limit: int | None = None) -> Scores:
    """Held-out loss, and with `answers` the exact match of the first `limit` rows, with the adapter in use."""
    loss, tokens = served_loss(served, dataset)
    given = exact_match(served, dataset, system=system, max_tokens=max_tokens, limit=limit) if answers else []
    return Scores(
        "llama.cpp", len(dataset.examples), tokens, loss, _share([answer.correct for answer in given]), len(given),
        _share([answer.parsed for answer in given if answer.parsed is not None]),
    )


def served_loss(served: LlamaModel, dataset: Dataset) -> tuple[float, int]:
    """(loss, tokens) by llama.cpp: -sum(w logp) / sum |w| over the supervised tokens, and their number.

    The same rows give the same bits. Raises EdgetuneError for a row longer than the context.
    """
    served.reset()
    total = 0.0
    weight = 0.0
    tokens = 0
    for example in dataset.examples:
        wanted = is_supervised(example.weights)
        logp = served.logprobs(example.tokens.tolist(), wanted)
        total -= float(np.dot(example.weights.astype(np.float64), logp))
        weight += float(np.abs(example.weights).sum(dtype=np.float64))
        tokens += int(wanted.sum())
    if weight == 0.0:
        raise DataError("the data has no token to be judged by", "give it rows with an answer")
    return total / weight, tokens


def exact_match(served: LlamaModel, dataset: Dataset, *, system: str | None = None, max_tokens: int | None = None,
                limit: int | None = None) -> list[Answer]:
    """Greedy answers to the first `limit` rows (None: all), in the order of the rows; none for plain text.

    max_tokens: None allows each answer twice the tokens of the expected one and 16 more, because a longer one is wrong.
    """
    pairs = [prompt_of(row, served.tokenizer, system) for row in dataset.asking[:limit]]
    budgets = [max_tokens or 2 * len(served.tokenizer.encode(expected)) + 16 for _, expected in pairs]
    answers: dict[int, Answer] = {}
    for index, text in served.complete([prompt for prompt, _ in pairs], budgets):
        prompt, expected = pairs[index]
        ended = len(served.tokenizer.encode(text, continues=True)) < budgets[index]
        answers[index] = Answer(prompt, expected, text, same(expected, text), ended)
    return [answers[index] for index in range(len(pairs))]


def same(expected: str, answer: str) -> bool:
    """Whether an answer is right: equal as JSON if the expected one is JSON, else equal but for outer white space.

    JSON's key order, spacing and number notation are free (1 is 1.0), its types are not (true is not 1).
    """
    value = _parse(expected)
    if value is _NOT_JSON:
        return expected.strip() == answer.strip()
    return _equal(value, _parse(answer))


def _equal(a: Any, b: Any) -> bool:
    if isinstance(a, bool) or isinstance(b, bool):
        return a is b
    if isinstance(a, dict) and isinstance(b, dict):
        return a.keys() == b.keys() and all(_equal(a[key], b[key]) for key in a)
    if isinstance(a, list) and isinstance(b, list):
        return len(a) == len(b) and all(map(_equal, a, b))
    return bool(a == b)


def _parse(text: str) -> Any:
    """The JSON value of a text, _NOT_JSON if it is none (a model's answer may be anything, also nested without end)."""
    try:
        return json.loads(text, parse_constant=_refuse)
    except (ValueError, RecursionError):
        return _NOT_JSON


def _refuse(constant: str) -> Any:
    raise ValueError(f"{constant} is not JSON")


def _share(flags: list[bool]) -> float | None:
    return sum(flags) / len(flags) if flags else None
