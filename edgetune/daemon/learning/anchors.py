"""Anchors (data/anchors.py) as a daemon makes them: the base answers while it answers people, and what it said is kept
for later jobs.
"""

from __future__ import annotations

import json
import threading
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ... import disk
from ...data.anchors import QUESTIONS, TOKENS, answered, asked, continued, question
from ...errors import Interrupted
from ...serving.completion import Completion
from ..state.files import Rows
from .rows import Row

BATCHES = 8  # at most: each holds what the base says to all QUESTIONS, drawn again


@dataclass(frozen=True)
class Base:
    """The base as anchors ask it. name, fingerprint: of the model. generate, chat: the service's; chat is None where
    the model has no chat template. together: answers asked for at once, as people are answered meanwhile.
    """

    name: str
    fingerprint: str
    generate: Callable[..., Completion]
    chat: Callable[..., Completion] | None
    together: int


class Anchors:
    """Anchors of a base, made when they are asked for and kept in `folder`. system: whether training gives rows a
    system message.
    """

    def __init__(self, base: Base, folder: Path, *, system: bool, stopping: threading.Event) -> None:
        self.base = base
        self.folder = folder
        self.together = max(base.together, 1)
        self.system = system
        self.stopping = stopping

    def rows(self, count: int) -> list[Row]:
        """`count` or more, if BATCHES hold them. Raises Interrupted where the service stops, DiskError."""
        found: list[Row] = []
        for number in range(BATCHES):
            if len(found) < count:
                found += self._batch(number)
        return found

    def _batch(self, number: int) -> list[Row]:
        """Made once, and kept."""
        path = self.folder / f"anchors-{self.base.fingerprint[-8:]}-{TOKENS}-{number}.jsonl"
        if not path.exists():
            seeds = range(number * len(QUESTIONS), (number + 1) * len(QUESTIONS))
            groups = [seeds[i : i + self.together] for i in range(0, len(QUESTIONS), self.together)]
            rows = [row for make in (self._texts, self._answers) for group in groups for row in make(group)]
            with disk.replaced(path) as beside:
                beside.write_text("".join(json.dumps(row) + "\n" for row in rows))
        return [*Rows(path)]

    def _options(self, seed: int) -> dict[str, Any]:
        """Of an answer by the base, whose tokens are drawn as likely as the base finds them."""
        return {"model": self.base.name, "temperature": 1.0, "top_k": 0, "top_p": 1.0, "min_p": 0.0, "seed": seed,
                "on_piece": self._check_running}

    def _check_running(self, _answer: Completion, _piece: str | None) -> None:
        """Ends an answer of the base when the service stops; who waits for it gets the error."""
        if self.stopping.is_set():
            raise Interrupted("the daemon stops", "ask again when it is back")

    def _texts(self, group: range) -> list[Row]:
        """Rows that continue a question as text."""
        answers = [self.base.generate(question(i), max_tokens=TOKENS, **self._options(i)) for i in group]
        texts = [(i, answer.text()) for i, answer in zip(group, answers, strict=True)]
        return [continued(i, text) for i, text in texts if text]

    def _answers(self, group: range) -> list[Row]:
        """Answers that ended. They have their own system message where training would give them that of the rows."""
        if self.base.chat is None:
            return []
        questions = [asked(i, self.system) for i in group]
        answers = [self.base.chat(messages, max_tokens=TOKENS, **self._options(i))
                   for messages, i in zip(questions, group, strict=True)]
        said = [(answer.text(), answer.finish == "stop") for answer in answers]
        return [answered(messages, text, ended)
                for messages, (text, ended) in zip(questions, said, strict=True) if text.strip()]
