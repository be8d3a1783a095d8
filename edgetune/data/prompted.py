"""What rows of several answers to a prompt share: one answer to it as a row of `rows`, and that as one example.

A prompt and its answers are texts, or all are lists of messages, of which an answer has one, the assistant's.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..errors import DataError
from ..llamacpp.tokenizer import Tokenizer
from . import rows as supervised_rows
from .around import Instruction, last_question, unlearned
from .calls import check_calls
from .packing import Example
from .rows import Row, check_message, is_blank, json_type, keys_of

Text = str | Sequence[Any]  # text, or messages


@dataclass(frozen=True)
class TargetAnswer:
    """The answer to learn from; name: of its key, for errors."""

    name: str
    prompt: Text
    answer: Text
    tools: Any = None

    @property
    def row(self) -> dict[str, Any]:
        """Reads it as a row of which the answer alone is supervised. Raises DataError for what is none."""
        if isinstance(self.prompt, str):
            if not isinstance(self.answer, str):
                raise DataError(f"prompt is text and {self.name} is a JSON {json_type(self.answer)}",
                                "write both as text, or both as lists of messages")
            return {"prompt": self.prompt, "completion": self.answer}
        asked = [message_of(f"prompt[{i}]", message) for i, message in enumerate(_messages("prompt", self.prompt))]
        answer = one_answer(self.name, self.answer)
        if asked[-1]["role"] == "assistant":
            raise DataError("the prompt ends with an assistant message", f"move it to {self.name}")
        row = {"messages": [*unlearned(asked), answer]}
        if self.tools is not None:
            row["tools"] = self.tools
        supervised_rows.check_row(row)
        return row

    @property
    def is_blank(self) -> bool:
        """Whether it says nothing."""
        if isinstance(self.answer, str):
            return not self.answer.strip()
        message = one_answer(self.name, self.answer)
        return not message.get("tool_calls") and is_blank(message["content"])

    def check_good(self, what: str, hint: str) -> None:
        """Raises DataError for an answer that should be learned and says nothing, or calls what its tools do not take.

        what, hint: said of an empty one.
        """
        if self.is_blank:
            raise DataError(what, hint)
        said = [{"role": "assistant", "content": self.answer}] if isinstance(self.answer, str) else self.answer
        check_calls(self.name, one_answer(self.name, said), self.tools)

    @property
    def said(self) -> Any:
        """Equal for answers that say the same."""
        if isinstance(self.answer, str):
            return self.answer.strip()
        message = one_answer(self.name, self.answer)
        content = message["content"]
        return [content.strip() if isinstance(content, str) else content, message.get("tool_calls")]

    def example(self, tokenizer: Tokenizer, system: Instruction, max_length: int) -> Example:
        """Its tokens, of which the answer's are supervised, at full length. Raises DataError."""
        row = self.row
        made = list(supervised_rows.examples_of(row, supervised_rows.shape_of(row), tokenizer, system, max_length))
        if len(made) != 1:
            raise DataError(f"{self.name} has no tokens to learn from", "write the answer, or remove the row")
        return made[0]


def with_note(prompt: Text, note: str, tokenizer: Tokenizer) -> Text:
    """The prompt with a note: after what the user asks, so that both prompts begin alike; without a chat template
    before it, as an answer continues its prompt's text. Raises DataError for messages without a user's.
    """
    if isinstance(prompt, str):
        return f"{note}\n\n{prompt}" if tokenizer.chat_template is None else f"{prompt}\n\n{note}"
    messages = [message_of(f"prompt[{i}]", message) for i, message in enumerate(_messages("prompt", prompt))]
    last = last_question(messages)
    if last is None:
        raise DataError("no message of the prompt is the user's", "add the question")
    content = messages[last]["content"]
    noted = f"{content}\n\n{note}" if isinstance(content, str) else [*content, {"type": "text", "text": note}]
    return [*messages[:last], {**messages[last], "content": noted}, *messages[last + 1:]]


def prompt_of(row: Mapping[str, Any]) -> Text:
    """What is asked: `prompt`, text or messages, or else `messages`. Raises DataError for both and for neither."""
    found = [key for key in ("prompt", "messages") if key in row]
    if len(found) != 1:
        raise DataError(f"the row {'asks in two ways' if found else 'asks nothing'} (its keys: {keys_of(row)})",
                        "write one of prompt and messages")
    return text_of(row, found[0])


def answer_to(prompt: Text, row: Mapping[str, Any]) -> TargetAnswer:
    """The row's completion, which may be text also where the prompt is messages. Raises DataError."""
    answer = text_of(row, "completion")
    if not isinstance(prompt, str) and isinstance(answer, str):
        answer = [{"role": "assistant", "content": answer}]
    return TargetAnswer("completion", prompt, answer, row.get("tools"))


def check_answer(row: Mapping[str, Any], way_out: str) -> None:
    """Raises DataError, with this way out, for a row whose completion is none, or says nothing."""
    answer = answer_to(prompt_of(row), row)
    answer.row  # noqa: B018 (raises)
    if answer.is_blank:
        raise DataError("the completion is empty", way_out)


def noted_prompt(answer: TargetAnswer, note: str, tokenizer: Tokenizer, system: Instruction,
                 max_length: int) -> NDArray[np.int32]:
    """The tokens before an answer whose prompt has a note. Raises DataError."""
    noted = replace(answer, prompt=with_note(answer.prompt, note, tokenizer))
    example = noted.example(tokenizer, system, max_length)
    return example.tokens[:example.begin]


def text_of(row: Mapping[str, Any], key: str) -> Text:
    """The text or the list of messages of a key. Raises DataError."""
    if not isinstance(row[key], str | list):
        raise DataError(f"{key} is a JSON {json_type(row[key])}", "write text, or a list of messages")
    return row[key]  # type: ignore[no-any-return]


def one_answer(name: str, messages: Text) -> dict[str, Any]:
    """The one message of an answer, the assistant's. Raises DataError."""
    found = _messages(name, messages)
    if len(found) != 1:
        raise DataError(f"{name} has {len(found)} messages",
                        "write one, the assistant's; earlier turns belong to the prompt")
    message = message_of(f"{name}[0]", found[0])
    if message["role"] != "assistant":
        raise DataError(f"{name}[0] has the role {message['role']!r}", "an answer is the assistant's")
    return {key: value for key, value in message.items() if key != "weight"}


def message_of(name: str, message: Any) -> dict[str, Any]:
    check_message(name, message)
    return message  # type: ignore[no-any-return]


def _messages(name: str, messages: Text) -> Sequence[Any]:
    if isinstance(messages, str) or not messages:
        what = "is text among lists of messages" if messages else "is empty"
        raise DataError(f"{name} {what}", "write a list of objects with role and content")
    return messages


def in_group(examples: Sequence[Example], rewards: Sequence[float] = (), number: int = 1) -> list[Example]:
    """Examples of a row that belong together, with their rewards. number: of their group, among those of the row."""
    known = rewards or [0.0] * len(examples)
    return [replace(made, group=number, reward=reward) for made, reward in zip(examples, known, strict=True)]


def with_keys(row: Row, keys: Sequence[str], lacks: str, expected: str) -> Mapping[str, Any]:
    """The row, an object that has these keys. Raises DataError. lacks: said of the row of another shape."""
    if not isinstance(row, Mapping):
        what = "plain text" if isinstance(row, str) else f"a JSON {json_type(row)}, not an object"
        raise DataError(f"the row is {what}", f"expected is {expected}")
    if not all(key in row for key in keys):
        raise DataError(f"the row {lacks} (its keys: {keys_of(row)})", f"expected is {expected}")
    return row
