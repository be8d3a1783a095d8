"""Exact match for a remote model, such as a daemon's, of which neither tokens nor loss are known."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import islice
from typing import Any

from ..data.around import Instruction, instructed
from ..data.question import question_text
from ..data.rows import Row, answered_messages
from ..errors import DataError
from .judge import same
from .served import GradedAnswer, Scores, exact_share, parsed_share

TOGETHER = 8  # questions in progress
Messages = list[dict[str, Any]]
Ask = Callable[[Messages, Sequence[dict[str, Any]], int], str]  # messages, tools, tokens at most; the answer


def asked_match(rows: Iterable[Row], ask: Ask, system: Instruction = None,
                limit: int | None = None) -> list[GradedAnswer]:
    """The answers to the first `limit` rows (None: all), in their order; an answer is cut if it is certainly wrong.

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
