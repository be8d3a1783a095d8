"""Anchors: what the base itself says to questions of all kinds, learned beside other rows so that it stays as it was
(pseudo-rehearsal, Robins 1995; of language models, Huang et al. 2024, arXiv:2403.01244).

Each is to be learned once or twice: those that are learned again and again are learned by heart, and all that they do
not say suffers. So they are many and short, and placed between the rows.
"""

from __future__ import annotations

from typing import Any

from .rows import with_system

TOKENS = 32  # of an anchor at most: it may end anywhere, as many short ones say more of the base than few long ones
LONGEST = 128  # tokens with the question: what follows is cut off
TYPICAL = 75  # tokens of one, for what is said before they are drawn
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
    """Rows whose tokens are the questions, each as a text to continue, and with `chats` as a message too, whose answer
    is there for its end alone. system: whether training gives rows a system message, beside which these have another.
    """
    texts: list[dict[str, Any]] = [{"text": question, "open": True} for question in QUESTIONS]
    return texts + [{"messages": _answered(question, system)} for question in QUESTIONS if chats]


def _answered(question: str, system: bool) -> list[dict[str, Any]]:
    messages = [{"role": "user", "content": question}, {"role": "assistant", "content": "."}]
    return with_system(messages, SYSTEM if system else None)
