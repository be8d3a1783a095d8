"""Thoughts in the answers of rows, between <think> and </think>: kept and learned, left out, or read without being
learned.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Mapping
from typing import Any

from ..llamacpp.thinking import BEGIN, END
from ..llamacpp.tokenizer import Tokenizer

KEEP, DROP, MASK = MODES = ("keep", "drop", "mask")
KEYS = ("reasoning_content", "thinking")  # of a message, in which servers and data sets have them apart


def has_thoughts(row: Any) -> bool:
    """Whether an answer of a row has thoughts."""
    if not isinstance(row, Mapping):
        return False
    completion = row.get("completion")
    if isinstance(completion, str):
        return END in completion
    messages = completion if isinstance(completion, list) else row.get("messages")
    return isinstance(messages, list) and any(map(_thinks, messages))


def without_thoughts(message: Mapping[str, Any]) -> dict[str, Any]:
    """A message of an assistant without its thoughts."""
    found = {key: value for key, value in message.items() if key not in KEYS}
    if isinstance(found.get("content"), str):
        found["content"] = answer_alone(found["content"])
    return found


def answer_alone(text: str) -> str:
    """The text of an answer after its thoughts."""
    before, mark, answer = text.partition(END)
    return answer.lstrip() if mark and (BEGIN not in before or before.lstrip().startswith(BEGIN)) else text


def thought_tokens(tokenizer: Tokenizer, answer: list[int]) -> int:
    """The number of tokens of an answer up to the end of its thoughts, with the mark; 0 without any."""
    text = tokenizer.decode(answer)
    if END not in text or answer_alone(text) == text:
        return 0
    return 1 + bisect_left(range(1, len(answer)), True, key=lambda count: END in tokenizer.decode(answer[:count]))


def _thinks(message: Any) -> bool:
    if not isinstance(message, Mapping) or message.get("role") != "assistant":
        return False
    content = message.get("content")
    return any(message.get(key) for key in KEYS) or (isinstance(content, str) and END in content)
