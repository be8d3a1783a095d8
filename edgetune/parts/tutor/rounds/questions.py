"""Prompts and labelled rows as questions, which are learned, asked or held out.

A function of the question decides whether it is held out, so that more rows never make a held-out one learned.
Questions that differ only in case, spacing and punctuation are one question.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from ....data import prompts, rows
from ....data.around import Instruction
from ....data.files import place, read_rows
from ....data.formats import BY_KEYS, recognised
from ....data.question import asked_messages, asked_text, question_key
from ....errors import DataError
from ....llamacpp.tokenizer import Tokenizer

HELD_OUT_OF_TEN = 2  # a fifth of the questions is held out


@dataclass(frozen=True)
class TutorQuestion:
    """A question. key: digest of its messages. item: the row for graders. reference: the right answer, or ""."""

    key: str
    item: Mapping[str, Any]
    reference: str = ""

    @property
    def text(self) -> str:
        return asked_text(self.item)

    @property
    def messages(self) -> list[dict[str, Any]]:
        return asked_messages(self.item)

    @property
    def is_held_out(self) -> bool:
        return int(self.key[:8], 16) % 10 < HELD_OUT_OF_TEN

    def with_answer(self, text: str) -> dict[str, Any]:
        if isinstance(self.item.get("prompt"), str):
            return {"prompt": self.item["prompt"], "completion": text}
        row: dict[str, Any] = {"messages": [*self.messages, {"role": "assistant", "content": text}]}
        return {**row, "tools": self.item["tools"]} if self.item.get("tools") is not None else row

    def prompt_tokens(self, tokenizer: Tokenizer, system: Instruction) -> list[int]:
        """The tokens that the model is given. Raises DataError for messages where it has no chat template."""
        messages = self.messages
        asked = {"messages": messages, "tools": self.item.get("tools")}
        text = prompts.prompt_text(asked, "messages", tokenizer, system) \
            if tokenizer.chat_template is not None or len(messages) > 1 else \
            prompts.prompt_text({"prompt": messages[0]["content"]}, "prompt", tokenizer, system)
        return tokenizer.encode(text, bos=True)


def read_questions(path: Path, tokenizer: Tokenizer, system: Instruction, labelled: bool | None) -> list[TutorQuestion]:
    """The questions of a file, each once. labelled False: prompts as for `--method grpo`, whose completion, if any, is
    the right answer; True: labelled rows as for `--method sft`; None: rows of either kind. DataError names the line.
    """
    found: dict[str, TutorQuestion] = {}
    for line, row in read_rows(path):
        try:
            has_answer = _ends_with_answer(row) if labelled is None else labelled
            question = _labelled(row, tokenizer, system) if has_answer else _asked(row)
        except DataError as error:
            raise DataError(f"{place(line, path.name)}: {error.what}", error.hint) from None
        found.setdefault(question.key, question)
    if not found:
        raise DataError(f"{path} holds no rows", "write one JSON object a line")
    return list(found.values())


def _ends_with_answer(row: rows.Row) -> bool:
    """Whether a row of messages ends with the right answer; that of a prompt is its completion in either kind."""
    messages = row.get("messages") if isinstance(row, Mapping) else None
    return bool(messages) and isinstance(messages, list) and messages[-1].get("role") == "assistant"


def _labelled(given: rows.Row, tokenizer: Tokenizer, system: Instruction) -> TutorQuestion:
    row = recognised(given, [rows], BY_KEYS)
    if isinstance(row, str) or rows.shape_of(row) == "text":
        raise DataError("a row of text has no question and answer", "give rows of messages, or prompt and completion")
    rows.check_learnable(row)
    _, reference = rows.prompt_of(row, tokenizer, system)
    return TutorQuestion(question_key(row), row, reference)


def _asked(row: rows.Row) -> TutorQuestion:
    prompts.check_learnable(row)
    assert isinstance(row, Mapping)
    reference = row.get("completion", "")
    if not isinstance(reference, str):
        raise DataError(f"completion is a JSON {rows.json_type(reference)}", "write the right answer as text, or none")
    return TutorQuestion(question_key(row), row, reference.strip())


@dataclass(frozen=True)
class Pool:
    """All questions. labelled: to learn. bare: prompts to ask. held: questions of the gate. may_refit: whether the
    held-out rows may be learned after the gate, because they were taken from the labelled ones.
    """

    labelled: Sequence[TutorQuestion]
    bare: Sequence[TutorQuestion]
    held: Sequence[TutorQuestion]
    may_refit: bool
    _by_key: Mapping[str, TutorQuestion] = field(default_factory=dict)

    def __getitem__(self, key: str) -> TutorQuestion:
        return self._by_key[key]

    @property
    def held_labelled(self) -> list[TutorQuestion]:
        """Held-out rows that are learned after the gate."""
        return [question for question in self.held if question.reference] if self.may_refit else []


def pool_of(labelled: Iterable[TutorQuestion], asked: Iterable[TutorQuestion], has_grader: bool,
            held: Sequence[TutorQuestion] = ()) -> Pool:
    """Divides questions into a pool; a labelled row replaces a prompt that asks the same. has_grader: whether questions
    without a right answer can be held out. held: the held-out questions, if the caller has chosen them; else a fifth of
    those that can be evaluated. Raises DataError if nothing is held out, or nothing is left to ask.
    """
    known: dict[str, TutorQuestion] = {}
    for question in (*held, *labelled, *asked):
        known.setdefault(question.key, question)
    given = {question.key for question in held}
    others = [question for question in known.values() if question.key not in given]
    apart = [question for question in held or others
             if (question.reference or has_grader) and (held or question.is_held_out)]
    keys = given | {question.key for question in apart}
    rest = [question for question in others if question.key not in keys]
    if not apart:
        raise DataError("nothing can evaluate what is learned: no prompt with a known answer is held out, and there is "
                        "no grader", "give more rows with answers (--labelled FILE), or a grader (--grader FILE)")
    bare = [question for question in rest if not question.reference]
    if not bare:
        raise DataError("there is no prompt without an answer to ask", "give more prompts, or learn the labelled rows "
                        "with edgetune train")
    return Pool([question for question in rest if question.reference], bare, apart, not held, known)


def in_turn(questions: Sequence[TutorQuestion], number: int, count: int, seed: int) -> list[TutorQuestion]:
    """The questions of round 1, 2, ...: at most the next `count` of a fixed random order, which repeats at its end."""
    order = np.random.default_rng([seed, len(questions)]).permutation(len(questions))
    count = min(count, len(order))
    begin = (number - 1) * count
    return [questions[order[(begin + i) % len(order)]] for i in range(count)]
