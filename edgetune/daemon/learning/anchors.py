"""Anchors: what the base itself says to questions of all kinds, and how it goes on from them as text.

Learned beside other rows they keep what it says elsewhere as it was.
"""

from __future__ import annotations

import json
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

from ... import disk
from ...errors import Interrupted
from ...serving.completion import Completion
from ..state.files import Rows

Row = dict[str, Any]
TEXT_TOKENS = 64  # of a text at most; it may end anywhere
ANSWER_TOKENS = 192  # of an answer at most; it must have ended
SHEETS = 8  # at most, for the longest lives: each holds what the base says to all QUESTIONS, drawn again
QUESTIONS = (
    "In one sentence, what makes the tides rise and fall?", "How do I boil an egg so that the yolk stays soft?",
    "Why do leaves turn yellow in autumn? Answer briefly.", "Give me one idea for a rainy afternoon.",
    "Who invented the printing press, and why did it matter?", "Write two sentences to a neighbour about noise.",
    "How does a bicycle stay upright?", "What is supply and demand, in a sentence or two?",
    "Name three things to pack for the mountains.", "Describe a busy market in one sentence.",
    "What is the difference between weather and climate?", "Write two lines about the first snow.",
    "Why do cats purr?", "What is an atom made of?", "How can a small town save energy? Answer briefly.",
    "What is the largest ocean?")


class Anchors:
    """Those of the base `name`, made when they are asked for and kept in `folder`. fingerprint: of the base. generate,
    chat: the service's, chat None where the model has no chat template. together: answers asked for at once, as people
    are answered meanwhile. system: whether training gives rows a system message.
    """

    def __init__(self, generate: Callable[..., Completion], chat: Callable[..., Completion] | None, *,
                 name: str, folder: Path,
                 fingerprint: str, together: int, system: bool, stopping: threading.Event) -> None:
        self.generate = generate
        self.chat = chat
        self.name = name
        self.folder = folder
        self.fingerprint = fingerprint
        self.together = max(together, 1)
        self.system = system
        self.stopping = stopping

    def rows(self, count: int) -> list[Row]:
        """`count` or more, if SHEETS hold them. Raises Interrupted where the service stops, DiskError."""
        found: list[Row] = []
        for sheet in range(SHEETS):
            if len(found) < count:
                found += self._sheet(sheet)
        return found

    def _sheet(self, sheet: int) -> list[Row]:
        """Made once, and kept."""
        path = self.folder / f"anchors-{self.fingerprint[-8:]}-{sheet}.jsonl"
        if not path.exists():
            numbers = range(sheet * len(QUESTIONS), (sheet + 1) * len(QUESTIONS))
            groups = [numbers[i : i + self.together] for i in range(0, len(QUESTIONS), self.together)]
            rows = [row for make in (self._texts, self._answers) for group in groups for row in make(group)]
            with disk.replaced(path) as beside:
                beside.write_text("".join(json.dumps(row) + "\n" for row in rows))
        return [*Rows(path)]

    def _drawn(self, seed: int) -> dict[str, Any]:
        """Options of an answer by the base, each as likely as the base finds it."""
        return {"model": self.name, "temperature": 1.0, "top_k": 0, "top_p": 1.0, "min_p": 0.0, "seed": seed,
                "on_piece": self._check_running}

    def _check_running(self, _ticket: Completion, _piece: str | None) -> None:
        """Ends an answer of the base when the service stops; who waits for it gets the error."""
        if self.stopping.is_set():
            raise Interrupted("the daemon stops", "ask again when it is back")

    def _texts(self, group: range) -> list[Row]:
        """Those that continue a question as text."""
        tickets = [self.generate(_question(i), max_tokens=TEXT_TOKENS, **self._drawn(i)) for i in group]
        texts = [(_question(i), ticket.text()) for i, ticket in zip(group, tickets, strict=True)]
        return [{"text": question + text, "open": True} for question, text in texts if text]

    def _answers(self, group: range) -> list[Row]:
        """Those that ended. With their own system message, where training would give them the one of the rows."""
        if self.chat is None:
            return []
        own = [{"role": "system", "content": "Answer the question."}] if self.system else []
        asked = [[*own, {"role": "user", "content": _question(i)}] for i in group]
        tickets = [self.chat(messages, max_tokens=ANSWER_TOKENS, **self._drawn(i))
                   for messages, i in zip(asked, group, strict=True)]
        answers = [(ticket.text(), ticket.finish) for ticket in tickets]
        return [{"messages": [*messages, {"role": "assistant", "content": answer}]}
                for messages, (answer, finish) in zip(asked, answers, strict=True) if finish == "stop"]


def _question(number: int) -> str:
    return QUESTIONS[number % len(QUESTIONS)]
