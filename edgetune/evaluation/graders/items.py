"""Reads the prompt and the answer of a row, in the shapes of training rows."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ...data.question import content_text
from ...errors import DataError
from .sample import Sample


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
