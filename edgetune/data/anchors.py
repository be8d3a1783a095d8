"""Anchors: what the base itself says to questions of all kinds, and how it continues texts, learned with other rows
so that it stays as it was (pseudo-rehearsal, Robins 1995; of language models, Huang et al. 2024, arXiv:2403.01244).

Each is to be learned once or twice: those that are learned again and again are memorised, and all that they do
not say suffers. So they are many and short, and placed between the rows. What no anchor is like changes most: texts are
begun as books, news and encyclopedias begin them.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, TypeVar

from .around import instructed
from .rows import as_messages

T = TypeVar("T")
TOKENS = 32  # of an anchor at most: it may end anywhere, as many short ones say more of the base than few long ones
LONGEST = 128  # tokens with the question: what follows is cut off
TYPICAL = 75  # tokens of one, for what is said before they are drawn
ROWS_PER_ANCHOR = 5
SYSTEM = "Answer the question."
A_BATCH = 16  # questions, and beginnings of texts, that are put at a time
QUESTIONS = (
    "In one sentence, what makes the tides rise and fall?", "How do I boil an egg so that the yolk stays soft?",
    "Why do leaves turn yellow in autumn? Answer briefly.", "Give me one idea for a rainy afternoon.",
    "Who invented the printing press, and why did it matter?", "Write two sentences to a neighbour about noise.",
    "How does a bicycle stay upright?", "What is supply and demand, in a sentence or two?",
    "Name three things to pack for the mountains.", "Describe a busy market in one sentence.",
    "What is the difference between weather and climate?", "Write two lines about the first snow.",
    "Why do cats purr?", "What is an atom made of?", "How can a small town save energy? Answer briefly.",
    "What is the largest ocean?",
    "Tell me a short story about a lost key.", "What should I check before I buy a used car?",
    "Explain fractions to a child of eight.", "What does a nurse do all day?",
    "Correct this sentence: she go to school yesterday.", "Is a tomato a fruit or a vegetable?",
    "Give me a polite way to say no to an invitation.", "What is 17 times 4?",
    "How are mountains formed?", "Recommend a book to somebody who likes the sea.",
    "Write a title for an essay about trust.", "What is the capital of Portugal?",
    "How do vaccines work? Keep it short.", "Summarise what a contract is in one sentence.",
    "What would you say to a friend who failed an exam?", "Why is the sky dark at night?",
    "List four words that rhyme with light.", "What is a loop in a program?",
    "How long does it take to learn to swim?", "Translate good morning into French.",
    "What are the rules of chess in three sentences?", "Why did people build castles?",
    "Give one reason for and one against working at night.", "How do I get a stain of coffee out of a shirt?",
    "Describe the smell of rain.", "What is democracy?", "How do bees find their way home?",
    "Start a letter to a landlord about a broken heater.", "What is the plural of mouse?",
    "Plan a simple dinner for two.", "What does the heart do?", "Who wrote Hamlet, and what is it about?")
BEGINNINGS = (
    "In 1923, the town of", "The river rises in the mountains of", "She opened the door and saw",
    "According to the report, the company", "The species is found in", "He was born in a small village near",
    "The first album by the band", "Scientists have found that", "After the war, the building was",
    "The match ended with", "To make the sauce, heat", "The court ruled that", "Once upon a time there was",
    "The novel tells the story of", "Prices rose sharply in", "The church stands on",
    "A new study suggests that", "The game was developed by", "In mathematics, a function is",
    "My grandmother used to say", "The ship left the harbour at", "During the summer months,",
    "The president said on Monday", "This chapter describes how", "The bird is about the size of",
    "Most people do not know that", "The railway line between", "When the storm had passed,", "The film received",
    "Water boils at a temperature", "The committee agreed to", "On the other side of the street",
    "The battle began when", "There are several kinds of", "The patient was given", "Her mother had always told her",
    "The old bridge over the", "For many years, farmers in", "The software allows users to",
    "He scored his first goal", "It is not clear whether", "The painting shows a", "By the end of the century,",
    "The team travelled to", "I have never understood why", "The law was changed in", "The island has a population of",
    "At first nobody noticed that")


def asking(system: bool, chats: bool) -> list[dict[str, Any]]:
    """Rows whose tokens are put to the base: texts to continue, and with `chats` questions as messages, whose answer is
    there for its end alone. system: whether training gives rows a system message, of which these have another.
    """
    texts: list[dict[str, Any]] = [{"text": text, "open": True} for text in BEGINNINGS]
    chosen = SYSTEM if system else None
    return texts + [{"messages": instructed(as_messages(question, "."), chosen)} for question in QUESTIONS if chats]


def of_batch(asked: Sequence[T], batch: int) -> list[T]:
    """A_BATCH of the questions, or of the beginnings, the next ones in each batch."""
    return [asked[(batch * A_BATCH + i) % len(asked)] for i in range(A_BATCH)] if asked else []
