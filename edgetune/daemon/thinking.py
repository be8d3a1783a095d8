"""The thinking that a question asks for, as options of the model."""

from __future__ import annotations

from typing import Any

from ..errors import UsageError
from ..serving.question import Question
from ..serving.served import Served


def thinking_of(question: Question, served: Served, name: str, options: dict[str, Any]) -> bool | None:
    """Adds the budget of thinking to the options, and returns whether the template shall let the model think; None: as
    it likes. name: the model's. Raises UsageError for a model that does not think.
    """
    if question.thinking is None:
        return None
    if served.thinks:
        options["thinking_budget"] = question.thinking
        return question.thinking != 0
    if question.thinking:
        raise UsageError(f"the answer shall be thought about first, and {name} does not support thinking",
                         "leave reasoning, reasoning_effort, reasoning_budget and think out")
    return None
