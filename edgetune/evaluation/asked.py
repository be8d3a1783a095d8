"""Exact match for a remote model, such as a daemon's, of which neither tokens nor loss are known."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import islice
from pathlib import Path
from typing import Any

from ..data import rows as supervised
from ..data.files import place, read_rows
from ..data.formats import BY_KEYS, Columns, recognised
from ..data.question import question_text
from ..data.rows import Row
from ..errors import DataError
from .judge import same
from .served import Answer, Scores, exact_share, parsed_share

TOGETHER = 8  # questions in progress
Messages = list[dict[str, Any]]
Ask = Callable[[Messages, Sequence[dict[str, Any]], int], str]  # messages, tools, tokens at most; the answer


def asking_rows(path: Path, columns: Columns = BY_KEYS) -> list[Row]:
    """The rows of a file that have a question and an answer. Raises DataError, which names the line."""
    found = []
    for line, row in read_rows(path):
        try:
            known = recognised(row, (supervised,), columns)
            is_text = supervised.shape_of(known) == "text"
        except DataError as error:
            raise DataError(f"{place(line, path.name)}: {error.what}", error.hint) from None
        if not is_text:
            found.append(known)
    if not found:
        raise DataError(f"{path} has no row with a question and an answer", "name a file of such rows")
    return found


def asked_match(rows: Iterable[Row], ask: Ask, system: str | None = None, limit: int | None = None) -> list[Answer]:
    """The answers to the first `limit` rows (None: all), in their order; an answer is cut if it is certainly wrong.

    Raises DataError for a row whose answer is a call of a tool, and what `ask` raises.
    """
    questions = [_question(row, system) for row in islice(rows, limit)]

    def answer(question: tuple[Row, Messages, Sequence[dict[str, Any]], str]) -> Answer:
        row, messages, tools, expected = question
        text = ask(messages, tools, 2 * len(expected.encode()) + 16)  # a token has a byte at least
        return Answer("", expected, text, same(expected, text), True, question_text(row))

    with ThreadPoolExecutor(TOGETHER) as pool:
        return list(pool.map(answer, questions))


def asked_scores(engine: str, rows: int, answers: Sequence[Answer]) -> Scores:
    """No tokens, and a loss that is not known."""
    return Scores(engine, rows, 0, math.nan, exact_share(answers), len(answers), parsed_share(answers))


def _question(row: Row, system: str | None) -> tuple[Row, Messages, Sequence[dict[str, Any]], str]:
    """(the row, messages up to the last answer, tools, that answer)"""
    assert not isinstance(row, str)
    begin: Messages = [{"role": "system", "content": system}] if system else []
    if "prompt" in row:
        return row, [*begin, {"role": "user", "content": row["prompt"]}], (), str(row["completion"]).strip()
    messages = [dict(message) for message in row["messages"]]
    last = max(i for i, message in enumerate(messages) if message["role"] == "assistant")
    if not isinstance(expected := messages[last].get("content"), str):
        raise DataError("a row's answer is no text", "leave --url out: calls of tools are evaluated where the model is")
    if messages[0]["role"] == "system":
        begin = []
    return row, [*begin, *messages[:last]], row.get("tools") or (), expected.strip()
