"""Questions of the tutor, for tests."""

from typing import Any

from edgetune.data.question import question_key
from edgetune.parts.tutor.rounds.questions import TutorQuestion


def question(asked: str | list[dict[str, Any]] = "how many?", reference: str = "") -> TutorQuestion:
    """asked: a prompt, or messages."""
    row: dict[str, Any] = {"prompt": asked} if isinstance(asked, str) else {"messages": asked}
    return TutorQuestion(question_key(row), row, reference)
