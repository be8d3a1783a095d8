"""Anchors: what the base itself says to questions of all kinds, learned beside other rows so that it stays as it was.

Each is to be learned once or twice: those that are learned again and again are learned by heart, and all that they do
not say suffers. So they are many and short, and placed between the rows.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from itertools import cycle
from typing import Any, TypeVar

from .rows import with_system

T = TypeVar("T")
U = TypeVar("U")
TOKENS = 32  # of an anchor at most: it may end anywhere, as many short ones say more of the base than few long ones
LONGEST = 128  # tokens with the question: what follows is cut off
ROWS_PER_ANCHOR = 5
SYSTEM = "Answer the question."
QUESTIONS = (
    "In one sentence, what makes the tides rise and fall?", "How do I boil an egg so that the yolk stays soft?",
    "Why do leaves turn yellow in autumn? Answer briefly.", "Give me one idea for a rainy afternoon.",
    "Who invented the printing press, and why did it matter?", "Write two sentences to a neighbour about noise.",
    "How does a bicycle stay upright?", "What is supply and demand, in a sentence or two?",
    "Name three things to pack for the mountains.", "Describe a busy market in one sentence.",
    "What is the difference between weather and climate?", "Write two lines about the first snow.",
    "Why do cats purr?", "What is an atom made of?", "How can a small town save energy? Answer briefly.",
    "What is the largest ocean?")


def asking(system: bool, chats: bool) -> list[dict[str, Any]]:
    """Rows whose tokens are the questions, each as a text to continue, and with `chats` as a message that has an
    answer, of which only its end counts.
    """
    rows = [continued(i, "") for i in range(len(QUESTIONS))]
    return rows + [answered(asked(i, system), ".", True) for i in range(len(QUESTIONS)) if chats]


def question(number: int) -> str:
    return QUESTIONS[number % len(QUESTIONS)]


def asked(number: int, system: bool) -> list[dict[str, Any]]:
    """A question as messages. system: whether training gives rows a system message, beside which this has another."""
    messages = [{"role": "user", "content": question(number)}]
    return with_system(messages, SYSTEM if system else None)


def continued(number: int, text: str) -> dict[str, Any]:
    """A row of a question that is continued as text."""
    return {"text": question(number) + text, "open": True}


def answered(messages: Sequence[dict[str, Any]], text: str, ended: bool) -> dict[str, Any]:
    """A row of an answer, which may have been cut."""
    row: dict[str, Any] = {"messages": [*messages, {"role": "assistant", "content": text}]}
    return row if ended else {**row, "open": True}


def with_anchors(rows: Sequence[T], anchors: Sequence[U], seed: int) -> list[T | U]:
    """The rows with an anchor after each ROWS_PER_ANCHOR; none twice before all were used once."""
    following = cycle(random.Random(seed).sample(anchors, len(anchors)))
    mixed: list[T | U] = []
    for number, row in enumerate(rows, start=1):
        mixed.append(row)
        if anchors and number % ROWS_PER_ANCHOR == 0:
            mixed.append(next(following))
    return mixed
