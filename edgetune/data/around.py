"""What is put around a conversation before a model reads it: a system message, examples, passages, corrections.

Everything that renders messages for a model takes `Instruction`, and puts them around with `instructed`: rows
to learn and to evaluate (`rows`), served models (`serving.model`), the daemon. So all of them read the same prompt.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

Message = dict[str, Any]  # in OpenAI's shape


class Around(Protocol):
    """Something that is put around a conversation. For any thread."""

    def put(self, messages: Sequence[Message], /) -> list[Message]:
        """Returns the messages with more before or between them; those that were given are not changed in place.

        The messages of a row end with its answer, which stays the last one: nothing of that answer may be put before
        it. Messages of an assistant that are added to a row have `"weight": 0`, as they are not learned.
        """
        ...


@runtime_checkable
class Sourced(Around, Protocol):
    """Something that is put around a conversation, and can say from where."""

    def sources(self, messages: Sequence[Mapping[str, Any]], /) -> list[dict[str, Any]] | None:
        """Returns the sources of an answer to messages: {source, score, file, heading, page, line} each, where heading,
        page and line may be None, and perhaps file_id. Returns None without a question.
        """
        ...


Instruction = Around | str | None  # a str is the system message of conversations that have none; "" and None: nothing


def instructed(messages: Sequence[Message], instructions: Instruction) -> list[Message]:
    """Messages with the instructions around them. A system message is put before those that have none."""
    if not instructions:
        return [*messages]
    if not isinstance(instructions, str):
        return instructions.put(messages)
    has_system = any(message.get("role") == "system" for message in messages)
    return [*messages] if has_system else [{"role": "system", "content": instructions}, *messages]


def is_row(messages: Sequence[Message]) -> bool:
    """Whether messages end with the answer of a row, as no conversation that is to be answered does."""
    return bool(messages) and messages[-1].get("role") == "assistant"


def last_question(messages: Sequence[Mapping[str, Any]]) -> int | None:
    """The index of the last message of a user; None without one."""
    return next((i for i in reversed(range(len(messages))) if messages[i].get("role") == "user"), None)


def unlearned(messages: Sequence[Any]) -> list[Any]:
    """Messages of which no answer is learned: those of an assistant have weight 0."""
    return [{**message, "weight": 0} if isinstance(message, Mapping) and message.get("role") == "assistant"
            else message for message in messages]


@dataclass(frozen=True)
class InOrder:
    """Several instructions, put around one after another: the prompt first, then what belongs near the question. So the
    system message of an earlier one wins.
    """

    parts: Sequence[Instruction]

    def put(self, messages: Sequence[Message], /) -> list[Message]:
        found = [*messages]
        for part in self.parts:
            found = instructed(found, part)
        return found


def together(*parts: Instruction) -> Instruction:
    """Several instructions as one, in their order; those that are empty are left out."""
    given = [part for part in parts if part]
    return given[0] if len(given) == 1 else InOrder(given) if given else None


def sourced(instruction: Instruction) -> Sourced | None:
    """Returns what says its sources among the parts of an instruction."""
    if isinstance(instruction, InOrder):
        return next((found for part in instruction.parts if (found := sourced(part))), None)
    return instruction if isinstance(instruction, Sourced) else None


def flat_prompt(prompt: str, completion: str, instructions: Instruction) -> str:
    """The text before the answer to a prompt, for a model without a chat template, which continues it. Each example is
    its question and answer as one text; an empty line is between all parts.
    """
    if not instructions or isinstance(instructions, str):
        return f"{instructions}\n\n{prompt}" if instructions else prompt
    row: list[Message] = [{"role": "user", "content": prompt}, {"role": "assistant", "content": completion}]
    *before, _ = instructions.put(row)
    parts: list[str] = []
    for i, message in enumerate(before):
        continues = message["role"] == "assistant" and i > 0 and before[i - 1]["role"] == "user"
        if continues:
            parts[-1] += message["content"]
        else:
            parts.append(message["content"])
    return "\n\n".join(parts)
