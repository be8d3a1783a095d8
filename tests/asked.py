"""Questions of the tutor, for tests."""

from typing import Any

from edgetune.data.question import question_key
from edgetune.tutor.questions import Question


def question(asked: str | list[dict[str, Any]] = "how many?", reference: str = "") -> Question:
    """asked: a prompt, or messages."""
    row: dict[str, Any] = {"prompt": asked} if isinstance(asked, str) else {"messages": asked}
    return Question(question_key(row), row, reference)
