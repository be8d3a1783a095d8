"""The sample that is graded: one answer, in the form that templates and python graders see."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ...data.question import content_text
from ...errors import DataError
from ..judge import NOT_JSON, parse_json


@dataclass(frozen=True)
class Sample:
    """One answer. finish_reason: "stop" or "length". tokens: its ids, where they are known."""

    text: str
    tool_calls: Sequence[Mapping[str, Any]] = ()
    finish_reason: str = "stop"
    tokens: Sequence[int] = ()


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


class Ungraded(Exception):
    """An answer that a grader cannot grade, with the errors of its Grade."""

    def __init__(self, name: str, details: str = "") -> None:
        super().__init__(details or name)
        self.errors: dict[str, bool | str] = {name: True}
        if details:
            self.errors[f"{name}_details"] = details


def sample_dict(sample: Sample) -> dict[str, Any]:
    """The `sample` of OpenAI's graders. output_json is None where the answer is no JSON."""
    value = parse_json(sample.text)
    return {"choices": choices_of(sample), "output_text": sample.text,
            "output_json": None if value is NOT_JSON else value, "output_tools": list(sample.tool_calls)}


def choices_of(sample: Sample) -> list[dict[str, Any]]:
    """The choices of a sample, as in a chat completion."""
    message: dict[str, Any] = {"role": "assistant", "content": sample.text}
    if sample.tool_calls:
        message["tool_calls"] = list(sample.tool_calls)
    return [{"index": 0, "message": message, "finish_reason": sample.finish_reason}]


def output_json(sample: Sample) -> Any:
    """The answer's value. Raises Ungraded where it is no JSON."""
    return json_of(sample.text)


def json_of(text: str) -> Any:
    """The value of an answer's text, or of a part. Raises Ungraded where it is no JSON."""
    value = parse_json(text)
    if value is NOT_JSON:
        raise Ungraded("sample_parse_error")
    return value
