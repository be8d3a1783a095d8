"""Rows of a model's answers to a prompt, right and wrong ones, from which it learns to look at its answer again:

    {"prompt": ..., "completion": the right answer, "attempts": ["...", ...], "labels": [true, false, ...]}

Prompt and answers are text, or lists of messages; `messages` that end with the user's may be written for `prompt`. An
attempt whose label is true is right. Each attempt makes a pair, as `preferences` has them, which is a group of two
examples. Its prompt is a conversation: the question, the attempt, and REQUEST. After a wrong attempt the completion is
chosen and the attempt rejected. After a right one the attempt is chosen and a wrong attempt of the row rejected, so
that a right answer is kept; it makes no pair in a row without a wrong one.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from ..errors import DataError
from ..llamacpp.tokenizer import Tokenizer
from .around import Instruction
from .packing import Example
from .prompted import TargetAnswer, Text, in_group, prompt_of, text_of, with_keys
from .rows import Row, json_type

EXPECTED = "prompt with completion, attempts and labels"
SHAPE = "attempts"
REQUEST = "Look at your answer again. Correct it if it is wrong, and repeat it if it is right."


def shape_of(row: Row) -> str:
    prompt_of(with_keys(row, ("completion", "attempts", "labels"), "has no attempts with labels", EXPECTED))
    return SHAPE


def check_learnable(row: Row) -> str:
    """Its shape. Raises DataError, also where no attempt is wrong, a right answer is empty, or labels contradict."""
    shape = shape_of(row)
    answers = _answers(row)
    labels = [True, *_labels(row)]
    for answer in answers:
        answer.row  # noqa: B018 (raises)
    said = [answer.said for answer in answers]
    for answer, is_right in zip(answers, labels, strict=True):
        if is_right:
            answer.check_good(f"{answer.name}, a right answer, is empty", "write it, or remove the row")
        first = said.index(answer.said)
        if labels[first] != is_right:
            what = f"{answers[first].name} and {answer.name} are the same, and only one of them is right"
            raise DataError(what, "mend the labels")
    if all(labels):
        raise DataError("no attempt is wrong", "remove the row: there is nothing to correct in it")
    return shape


def examples_of(row: Row, _shape: str, tokenizer: Tokenizer, system: Instruction, max_length: int) -> Iterable[Example]:
    """Makes of each pair the chosen answer's example, then the rejected one's, at full length. Raises DataError."""
    check_chat(tokenizer)
    return [example for number, pair in enumerate(pairs_of(row), start=1) for example in
            in_group([answer.example(tokenizer, system, max_length) for answer in pair], number=number)]


def pairs_of(row: Any) -> list[tuple[TargetAnswer, TargetAnswer]]:
    """(chosen, rejected) of each pair; right attempts take the wrong ones by turns. Raises DataError."""
    right, *attempts = _answers(row)
    labels = _labels(row)
    wrong = [attempt for attempt, is_right in zip(attempts, labels, strict=True) if not is_right]
    pairs = []
    kept = 0
    for attempt, is_right in zip(attempts, labels, strict=True):
        if not is_right:
            pairs.append((_behind(attempt, right), _behind(attempt, attempt)))
        elif wrong:
            pairs.append((_behind(attempt, attempt), _behind(attempt, wrong[kept % len(wrong)])))
            kept += 1
    return pairs


def _behind(attempt: TargetAnswer, second: TargetAnswer) -> TargetAnswer:
    """The second answer, where the attempt was the first."""
    return TargetAnswer(second.name, asked_again(attempt.row["messages"]), second.answer, second.tools)


def asked_again(messages: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """A conversation that ends with an answer, and asks for a second one."""
    return [*messages, {"role": "user", "content": REQUEST}]


def check_chat(tokenizer: Tokenizer) -> None:
    """Raises DataError for a model that knows no second turn."""
    if tokenizer.chat_template is None:
        raise DataError("the model has no chat template, and a second answer needs one", "use a chat model")


def _answers(row: Any) -> list[TargetAnswer]:
    """The completion, then the attempts, all of messages, as first answers to the prompt."""
    prompt = _messages("user", prompt_of(row))
    attempts = row["attempts"]
    if not isinstance(attempts, list) or not attempts:
        what = "is empty" if attempts == [] else f"is a JSON {json_type(attempts)}"
        raise DataError(f"attempts {what}", "write a list of the model's answers")
    named = {"completion": row["completion"], **{f"attempts[{i}]": attempt for i, attempt in enumerate(attempts)}}
    return [TargetAnswer(name, prompt, _messages("assistant", text_of(named, name)), row.get("tools"))
            for name in named]


def _messages(role: str, said: Text) -> Text:
    return [{"role": role, "content": said}] if isinstance(said, str) else said


def _labels(row: Any) -> list[bool]:
    labels = row["labels"]
    if not isinstance(labels, list) or len(labels) != len(row["attempts"]):
        what = f"has {len(labels)}" if isinstance(labels, list) else f"is a JSON {json_type(labels)}"
        raise DataError(f"labels {what}", f"write a list of {len(row['attempts'])} truth values, one an attempt")
    for i, label in enumerate(labels):
        if not isinstance(label, bool):
            raise DataError(f"labels[{i}] is a JSON {json_type(label)}", "write true for a right attempt, or false")
    return labels
