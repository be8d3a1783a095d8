"""Converts an answer of our own engine to the sample of graders."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from ...serving.call_form import CallForm
from ...serving.rollouts.texts import TextAnswer
from ...serving.tool_calls import CallReader, join
from .sample import Sample


def answered_sample(answered: TextAnswer, tools: Sequence[Mapping[str, Any]] | None, form: CallForm) -> Sample:
    """The sample of an answer. tools: those that the row offers. form: the model's form of a call (`call_form`)."""
    text = answered.text
    calls: list[dict[str, Any]] = []
    names = [tool.get("function", {}).get("name") for tool in tools or ()]
    if names:
        text, pieces = CallReader(form.begin, form.end, [name for name in names if name]).push(text, last=True)
        calls = [{"id": call.id, "type": "function", "function": {"name": call.name, "arguments": call.arguments}}
                 for call in join(pieces)]
    return Sample(text, calls, answered.finish_reason, answered.rollout.tokens.tolist())
