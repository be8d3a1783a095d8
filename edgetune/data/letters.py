"""Typed questions for a model that writes text: each option has a letter, and the most probable letter answers.

    The cellar is wet.

    Question: Who repairs it?
    A. plumber
    B. roofer: leaks above

    Answer with one letter.

The state is first, so that several questions about it have one beginning, which is read once. A model prefers some
letters whatever they mean; so the options are asked in their order and backwards. What was asked is read from the text
itself, so that corrections of such answers and rows of files are one form.
"""

from __future__ import annotations

import json
import re
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from ..errors import DataError, UsageError
from .decisions import CHOICE, NOUL, QUESTIONS, YES, TypedQuestion, labels_in, likeliest, read_questions, words
from .packing import Example, is_supervised

if TYPE_CHECKING:
    from ..llamacpp.tokenizer import Tokenizer
    from .rows import Row

LETTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"
AS_LETTER = "Answer with one letter."
_ASKED = re.compile(r"\n\nQuestion: (?P<question>[^\n]+)\n(?P<options>(?:[A-Z]\. [^\n]+\n)+)\n"
                    rf"{re.escape(AS_LETTER)}\Z")


@dataclass(frozen=True)
class Asked:
    """A question as its text has it. state: what it is about; instructions: the question; options: after each letter.
    """

    state: str
    instructions: str
    options: tuple[str, ...]

    @property
    def text(self) -> str:
        lines = [f"{letter}. {option}" for letter, option in zip(LETTERS, self.options, strict=False)]
        return "\n".join([self.state, "", f"Question: {self.instructions}", *lines, "", AS_LETTER])

    @property
    def backwards(self) -> Asked:
        """The question with its options in the opposite order."""
        return Asked(self.state, self.instructions, self.options[::-1])


def asked(state: str, question: TypedQuestion) -> Asked:
    """A question about a state. Raises UsageError for more options than there are letters."""
    if len(question.labels) > len(LETTERS):
        raise UsageError(f"the question {question.instructions!r:.80} has {len(question.labels)} options, and a model "
                         f"that writes text chooses from at most {len(LETTERS)}", "take an encoder, such as minilm")
    options = tuple(_option(question, number) for number in range(len(question.labels)))
    return Asked(state, question.instructions, options)


def read_asked(text: object) -> Asked | None:
    """The question of a user's text; None for another text."""
    found = _ASKED.search(text) if isinstance(text, str) and text.endswith(AS_LETTER) else None
    if not found or not isinstance(text, str):
        return None
    options = tuple(line[3:] for line in found["options"].splitlines())
    question = Asked(text[:found.start()], found["question"], options)
    return question if question.text == text else None


def lettered(question: TypedQuestion) -> dict[str, str]:
    """The letter of each label, by the label."""
    return dict(zip(question.labels, LETTERS, strict=False))


def spelled(row: Row) -> list[Row]:
    """Rows by which a model that writes text learns a row: a conversation for each typed question that it answers, or
    the row itself. Half of them, by chance, have their options backwards. Raises DataError for too many options.
    """
    if not isinstance(row, Mapping) or QUESTIONS not in row or "messages" not in row:
        return [row]
    state, answer = (str(message["content"]) for message in row["messages"])
    questions = {question.key: question for question in read_questions(row[QUESTIONS]).values()}
    return [_spelled(state, questions[key], likeliest(label)) for key, label in (labels_in(answer) or {}).items()]


def measurable(example: Example, messages: Sequence[Mapping[str, Any]], tokenizer: Tokenizer) -> Example:
    """The example of a conversation; of an answered question with what measures the answer: a `Letters` as its item."""
    question = read_asked(messages[-2].get("content")) if len(messages) > 1 else None
    first = example.tokens[is_supervised(example.weights)][:1]
    letters = _tokens_of_letters(tokenizer, len(question.options)) if question else []
    if not question or first.size == 0 or first[0] not in letters:
        return example
    turned = [*messages[:-2], {**messages[-2], "content": question.backwards.text}]
    other = tokenizer.encode(tokenizer.render([dict(message) for message in turned], add_generation_prompt=True),
                             bos=True)
    return replace(example, item=json.dumps(vars(Letters(question.instructions, letters, other))))


@dataclass(frozen=True)
class Letters:
    """What measures an example's answer. letters: the token of each option's letter; backwards: the tokens of the
    question with its options in the opposite order.
    """

    question: str
    letters: list[int]
    backwards: list[int]

    @classmethod
    def of(cls, example: Example) -> Letters | None:
        """None for an example of another kind."""
        return cls(**json.loads(example.item)) if example.item else None


def _tokens_of_letters(tokenizer: Tokenizer, count: int) -> list[int]:
    return [tokenizer.encode(letter)[-1] for letter in LETTERS[:count]]


def _spelled(state: str, question: TypedQuestion, label: str) -> Row:
    try:
        whole = asked(state, question)
    except UsageError as error:
        raise DataError(error.what, error.hint) from None
    number = question.labels.index(label)
    if zlib.crc32(whole.text.encode("utf-8", "surrogatepass")) % 2:
        whole = whole.backwards
        number = len(question.labels) - 1 - number
    return {"messages": [{"role": "user", "content": whole.text}, {"role": "assistant", "content": LETTERS[number]}]}


def _option(question: TypedQuestion, number: int) -> str:
    label, text = question.labels[number], words(question.texts[number])
    if question.type == NOUL:
        label = "yes" if label == YES else "no"
    return text if question.type not in (CHOICE, NOUL) else f"{label}: {text}" if text else label
