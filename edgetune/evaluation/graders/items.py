"""Reads the prompt and the answer of a row, in the shapes of training rows."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ...errors import DataError
from .sample import Sample

SHAPES = '{"prompt": "...", ...} or {"messages": [...], ...}'


def asked_messages(item: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The messages of a row's prompt, without an answer at their end. Raises DataError where there are none."""
    prompt = item.get("prompt")
    if isinstance(prompt, str):
        return [{"role": "user", "content": prompt}]
    messages = prompt if prompt is not None else item.get("messages")
    is_right = isinstance(messages, list) and all(isinstance(message, Mapping) for message in messages)
    if not is_right or not messages:
        raise DataError("the row asks nothing", f"write {SHAPES}")
    last = messages[-1].get("role") == "assistant" and prompt is None  # of a row to learn: its answer
    found = [dict(message) for message in messages[:len(messages) - last]]
    if not found:
        raise DataError("the row asks nothing", f"write {SHAPES}")
    return found


def prompt_text(item: Mapping[str, Any]) -> str:
    """The same as text. Errors as there."""
    return "\n".join(content_text(message.get("content")) for message in asked_messages(item))


def content_text(content: Any) -> str:
    """The text of a message's content: a string, or a list of parts of which some are text."""
    if isinstance(content, list):
        return "".join(part["text"] for part in content
                       if isinstance(part, Mapping) and isinstance(part.get("text"), str))
    return content if isinstance(content, str) else ""


def written_sample(item: Mapping[str, Any]) -> Sample:
    """The answer that a row has: its completion, or its last message, if that is the assistant's. Raises DataError."""
    completion = item.get("completion")
    if isinstance(completion, str):
        return Sample(completion)
    messages = completion if completion is not None else item.get("messages")
    last = messages[-1] if isinstance(messages, list) and messages else None
    if not isinstance(last, Mapping) or last.get("role") != "assistant":
        raise DataError("the row has no answer to grade", "write a completion, or messages that end with the "
                        "assistant's, or let a model answer")
    calls = last.get("tool_calls")
    return Sample(content_text(last.get("content")), calls if isinstance(calls, list) else ())
