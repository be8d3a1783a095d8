"""Rows of a question and an answer that an encoder can give: one of a few texts, or JSON of known form.

    {"prompt": "...", "completion": "..."}
    {"messages": [{"role": "user", "content": "..."}, {"role": "assistant", "content": "..."}]}

An encoder reads one text: the user's message, without a system message; one that is a typed question (decisions.py)
says which head answers. A row becomes one example: the question between the encoder's marks, cut at max_length. Nothing
of it is supervised until all rows are read and the objective knows their labels; until then `item` has the answer, and
of an object the question and the places of its tokens too.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from ..errors import DataError, UsageError
from ..llamacpp.tokenizer import Tokenizer
from ..llamacpp.tokenizers import AnyTokenizer, EncoderTokenizer
from ..llamacpp.wordpiece import Encoded, Place
from . import rows as supervised_rows
from .around import Instruction
from .decisions import Labels, check_answer, labels_in, prompt_of, split, typed_in
from .packing import Example
from .rows import Row, as_messages, is_blank

EXPECTED = "messages or prompt with completion: a question and its answer"
TAKE_DECODER = "take a model that writes text, such as smollm2"
LONGEST = 2000  # characters of an answer
MOST_LABELS = 1000


@dataclass(frozen=True)
class LabelledQuestion:
    """A question, its answer as an object, and the characters of the question that each token came from."""

    question: str
    answer: dict[str, Any]
    places: list[Place]


@dataclass(frozen=True)
class Read:
    """A question as an encoder reads it. typed: the key of the typed question that is asked about it; "": all are."""

    text: str
    encoded: Encoded
    typed: str = ""

    @property
    def tokens(self) -> int:
        return len(self.encoded.ids)


def shape_of(row: Row) -> str:
    """messages or prompt; DataError for another row."""
    shape = supervised_rows.shape_of(row)
    if shape == "text":
        raise DataError("the row is a text without a question", f"expected is {EXPECTED}; or {TAKE_DECODER}")
    return shape


def check_learnable(row: Row) -> str:
    """The shape of a row that has one question and one label. Raises DataError."""
    shape = shape_of(row)
    question_and_answer(row)
    return shape


def question_and_answer(row: Row) -> tuple[str, str]:
    """What is asked, as `read_by` reads it, and the answer, without space around them. Raises DataError for a row with
    several turns, or an answer that is empty, longer than LONGEST or no text.
    """
    supervised_rows.check_learnable(row)
    assert isinstance(row, Mapping)
    messages = as_messages(row["prompt"], row["completion"]) if "prompt" in row else row["messages"]
    turns = [message for message in messages if message["role"] != "system"]
    if [message["role"] for message in turns] != ["user", "assistant"]:
        raise DataError(f"the row has {len(turns)} messages, an encoder reads one question and has one answer to it",
                        f"write one of the user and one of the assistant; or {TAKE_DECODER}")
    question, answer = (text_of(message) for message in turns)
    if is_blank(question):
        raise DataError("the question is empty", "write it, or remove the row")
    if len(answer) > LONGEST:
        raise DataError(f"the answer has {len(answer)} characters, at most {LONGEST} are learned", TAKE_DECODER)
    typed = typed_in(messages)
    check_answer(typed, answer)
    return prompt_of(typed, question), answer


def text_of(message: Mapping[str, Any]) -> str:
    """The content of a message that is text. Raises DataError for another."""
    content = message.get("content")
    if not isinstance(content, str):
        raise DataError(f"the {message['role']}'s message is not text alone", TAKE_DECODER)
    return content.strip()


def examples_of(row: Row, _shape: str, tokenizer: AnyTokenizer, _system: Instruction,
                max_length: int) -> Iterable[Example]:
    if isinstance(tokenizer, Tokenizer):
        raise UsageError("the model writes text, and labels are learned by an encoder", "take one, such as minilm")
    question, answer = question_and_answer(row)
    return [example_of(read_by(tokenizer, question, max_length), answer)]


def read_by(tokenizer: EncoderTokenizer, question: str, max_length: int) -> Read:
    """A question as it is read, which may begin with the key of a typed one."""
    typed, text = split(question)
    return Read(text, encode(tokenizer, text, max_length), typed)


def example_of(read: Read, answer: str) -> Example:
    """The example of a question and its answer, before an objective prepares it."""
    tokens = np.array(read.encoded.ids, np.int32)
    labels = {read.typed: answer} if read.typed else labels_in(answer)
    item = json.dumps(labels or [answer, *([read.text, read.encoded.places] if is_object(answer) else [])])
    return Example(tokens, np.zeros(tokens.size, np.float32), item=item)


def encode(tokenizer: EncoderTokenizer, question: str, max_length: int) -> Encoded:
    """The tokens of a question; of one that is too long the beginning and the last mark."""
    found = tokenizer.encode_places(question)
    if len(found.ids) <= max_length:
        return found
    return Encoded([*found.ids[:max_length - 1], found.ids[-1]], [*found.places[:max_length - 1], found.places[-1]])


def answer_of(example: Example) -> str:
    """The answer's text. Raises DataError for answers to typed questions."""
    found = json.loads(example.item)
    if isinstance(found, dict):
        raise DataError("the row answers typed questions, as others do not", "keep them in separate files")
    return str(found[0])


def decisions_of(example: Example) -> Labels:
    """The labels of an example by the keys of its typed questions; of an answer to no typed question, by ""."""
    found = json.loads(example.item)
    return found if isinstance(found, dict) else {"": found[0]}


def asked_of(example: Example) -> LabelledQuestion:
    """The question and the answer of an example whose answer is an object. Raises DataError for another."""
    answer = answer_of(example)
    others = json.loads(example.item)[1:]
    if not others:
        raise DataError(f"the answer {answer!r:.80} is no JSON object, as others are", "write all in one form")
    return LabelledQuestion(others[0], json.loads(answer), [(begin, end) for begin, end in others[1]])


def labels_of(answers: Sequence[str]) -> tuple[str, ...]:
    """The different answers, in alphabetical order. Raises DataError for fewer than two, or more than MOST_LABELS."""
    labels = sorted(set(answers))
    if len(labels) < 2:
        raise DataError(f"all rows have the label {labels[0]!r:.80}" if labels else "there are no rows",
                        "add rows with other labels")
    if len(labels) > MOST_LABELS:
        raise DataError(f"the rows have {len(labels)} labels, at most {MOST_LABELS} are learned", TAKE_DECODER)
    return tuple(labels)


def are_few(answers: Sequence[str]) -> bool:
    """Whether most answers occur several times, as labels do."""
    return 2 * sum(count == 1 for count in Counter(answers).values()) <= len(answers)


def list_of(answer: str) -> list[str]:
    """The labels of an answer that is a JSON list of texts. Raises DataError for another."""
    try:
        found = json.loads(answer)
    except (ValueError, RecursionError):
        found = None
    if not isinstance(found, list) or not all(isinstance(label, str) and label.strip() for label in found):
        raise DataError(f"the answer {answer!r:.80} is no JSON list of labels, as others are", "write all in one form")
    return found


def is_list(answer: str) -> bool:
    """Whether an answer is a JSON list of texts, or of nothing."""
    try:
        return answer.startswith("[") and isinstance(list_of(answer), list)
    except DataError:
        return False


def is_object(answer: str) -> bool:
    """Whether an answer is a JSON object with something in it."""
    try:
        return answer.startswith("{") and bool(json.loads(answer))
    except (ValueError, RecursionError):
        return False
