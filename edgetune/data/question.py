"""The question of a row: the prompt, or the messages before the answer; its digests, and its text for people.

Digests decide which rows are held out, and are stored with feedback and with prompts. They must not change.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ..errors import DataError
from . import rows as supervised
from .files import place, read_rows
from .formats import BY_KEYS, Columns, recognised
from .preferences import answers_of, is_pair
from .rows import Row


def question_of(row: Row) -> Any:
    """The messages before the last answer, the prompt, or the row itself. Raises DataError without a prompt."""
    if not isinstance(row, Mapping):
        return row
    if is_pair(row):
        return answers_of(row)[0].prompt
    messages = row.get("messages")
    if isinstance(messages, list):
        answers = [i for i, message in enumerate(messages)
                   if isinstance(message, Mapping) and message.get("role") == "assistant"]
        return messages[:answers[-1]] if answers else messages
    prompt = row.get("prompt")
    return prompt if (isinstance(prompt, str) and prompt.strip()) or (isinstance(prompt, list) and prompt) else row


def question_text(row: Row) -> str:
    """The text of the prompt, or of the last message before the last answer, without the conversation before it."""
    question = question_of(row)
    if isinstance(question, list):
        question = question[-1].get("content") if question else ""
    return content_text(question)


def question_digest(row: Row, by_shape: bool = False) -> str:
    """64 hexadecimal digits, equal for rows that ask the very same, system message included. Tools do not count.

    by_shape: of a row of feedback, as the daemon stores it: the key under which it asks counts, and an empty prompt is
    a question, because what people said about an answer to it belongs together. Raises DataError for what JSON cannot
    hold, and for a pair without a prompt.
    """
    question = question_of(row)
    if by_shape and isinstance(row, Mapping):
        question = {"messages": question} if "messages" in row else {"prompt": row["prompt"]}
    return digest(question)


def question_key(row: Mapping[str, Any]) -> str:
    """32 hexadecimal digits, equal for rows that ask the same in other letters: case, spacing and punctuation do not
    count, nor whether the question is a prompt or messages, because prompts are what people typed.
    """
    asked = [[message["role"], " ".join(re.findall(r"\w+", str(message.get("content")).casefold()))]
             for message in asked_messages(row)]
    return hashlib.sha256(json.dumps(asked, ensure_ascii=False).encode()).hexdigest()[:32]


def asked_messages(row: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The messages of a row's prompt, without an answer at their end. Raises DataError where there are none.

    An earlier answer is a part of the question here, also where the user's message after it ends the row: such a row
    asks, while `question_of` is about rows to learn, of which nothing after the last answer is learned.
    """
    prompt = row.get("prompt")
    if isinstance(prompt, str):
        return [{"role": "user", "content": prompt}]
    messages = prompt if prompt is not None else row.get("messages")
    found = []
    if isinstance(messages, list) and messages and all(isinstance(message, Mapping) for message in messages):
        last = messages[-1].get("role") == "assistant" and prompt is None  # of a row to learn: its answer
        found = [dict(message) for message in messages[:len(messages) - last]]
    if not found:
        raise DataError("the row asks nothing", 'write {"prompt": "...", ...} or {"messages": [...], ...}')
    return found


def user_text(row: Row) -> str:
    """The text of a user's last message in `asked_messages`; "" where there is none, as in a plain text."""
    if not isinstance(row, Mapping):
        return ""
    try:
        said = [message for message in asked_messages(row) if message.get("role") == "user"]
    except DataError:
        return ""
    return content_text(said[-1].get("content")).strip() if said else ""


def asked_text(row: Mapping[str, Any]) -> str:
    """The text of `asked_messages`, a line each. Errors as there."""
    return "\n".join(content_text(message.get("content")) for message in asked_messages(row))


def content_text(content: Any) -> str:
    """The text of a message's content: text, or a list of parts of which some are text."""
    if isinstance(content, str):
        return content
    parts = content if isinstance(content, list) else ()
    texts = (part.get("text") if isinstance(part, Mapping) else part for part in parts)
    return "".join(text for text in texts if isinstance(text, str))


def digest(value: Any) -> str:
    """The SHA-256 of a row or another value of JSON, whatever the order of keys. Errors as of `canonical`."""
    return hashlib.sha256(canonical(value).encode()).hexdigest()


def canonical(value: Any) -> str:
    """JSON in which equal values are equal text. Raises DataError for what JSON cannot hold."""
    try:
        return json.dumps(value, sort_keys=True)
    except (TypeError, ValueError, RecursionError) as error:
        raise not_json(error) from None


def not_json(error: Exception) -> DataError:
    return DataError(f"the rows are not what JSON can hold ({error})", "use str, numbers, lists and dicts")


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
