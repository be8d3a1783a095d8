"""The last answers by their ids, for feedback."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

from ...errors import NotFoundError


@dataclass(frozen=True)
class AnsweredRequest:
    """A request with its answer. question: messages and tools, or prompt."""

    question: dict[str, Any]
    answer: str
    model: str

    def to_json(self) -> str:
        return json.dumps([self.question, self.answer, self.model])


class RecentAnswers:
    """The last answers by their ids, for feedback; in memory only. `count` of them, and `size` characters at most.

    They are kept as JSON: objects would take many times as much.
    """

    def __init__(self, count: int = 1000, size: int = 4 << 20) -> None:
        self.count = count
        self.size = size
        self._answers: dict[str, str] = {}
        self._characters = 0

    def add(self, id: str, answered: AnsweredRequest) -> None:
        text = answered.to_json()
        self._answers[id] = text
        self._characters += len(text)
        while len(self._answers) > self.count or (self._characters > self.size and len(self._answers) > 1):
            self._characters -= len(self._answers.pop(next(iter(self._answers))))

    def get(self, id: str) -> AnsweredRequest:
        """Raises NotFoundError."""
        text = self._answers.get(id)  # once: answers leave on another thread
        if text is None:
            raise NotFoundError(f"the answer {id!r:.100} is not among the last ones",
                                "send the messages (or prompt) and the answer themselves")
        return AnsweredRequest(*json.loads(text))
