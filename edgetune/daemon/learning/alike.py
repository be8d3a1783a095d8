"""Which known question a new one repeats in other words, by vectors of an encoder and by its words; none, where unsure.

A known question is a repeat if four things hold: its likeness is at least the limit; no known question with another
answer is nearly as like; the two do not differ by words in the same place ("paper bin" and "glass bin"); and what the
answer takes from the known question ("hall" in `{"room": "hall"}`) is in the new one too.

Each question that arrives with its answer tests the earlier ones, before it joins them. The limit is raised until most
of what would have been answered is right. Likeness is the cosine, scaled so that unrelated questions have 0.
Letters: n known questions, D width of a vector, all of length 1.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from difflib import SequenceMatcher

import numpy as np

from ...data.words import words_of
from ...serving.neighbours import LEAST, Floats, Neighbours, limit_of_repeats

MARGIN = 0.1  # by which questions with other answers are less like
SAME_FRAME = 0.7  # share of words in order, from which on a replaced word makes another question
TESTS = 1000  # the latest, by which the limit is set
MOST = 4096  # known questions, the latest
STEM = 4  # letters of a word that decide, at least, where endings differ
# of which no two have to do with each other
UNRELATED = ("What time does the train to Lisbon leave?", "How do I remove red wine from a carpet?",
             "Who painted the ceiling of this church?", "The compressor makes a loud noise when it starts.",
             "Please translate this letter into Polish.", "Which medicine helps against hay fever?",
             "Add two litres of milk to the shopping list.", "What is the boiling point of ethanol?",
             "My invoice from March has the wrong address.", "Is there a playground near the hotel?",
             "How many goals did the home team score?", "Turn the heating in the bathroom down.")


@dataclass(frozen=True)
class KnownQuestion:
    """A question that is known. answer: the right one; "" where none is known. wrong: a wrong one, or None."""

    key: str
    text: str
    answer: str
    wrong: str | None = None


class Alike:
    """Known questions. base: the cosine of unrelated questions. limit: the least likeness of a repeat; above 1: nothing
    is one. For one thread at a time.
    """

    def __init__(self, base: float) -> None:
        self.limit = LEAST
        self._known: list[KnownQuestion] = []
        self._near = Neighbours(base=base)  # in the order of _known
        self._tests: list[tuple[float, bool]] = []  # likeness of what was recalled, whether it is right

    def __len__(self) -> int:
        return len(self._known)

    def learn(self, known: KnownQuestion, vector: Floats) -> None:
        """Adds a question [D], which tests the earlier ones first. It replaces the one of the same key."""
        self._test(known, vector)
        self.forget(known.key)
        if not known.answer:
            return
        if len(self._known) == MOST:
            self.forget(self._known[0].key)
        self._near.add(vector)
        self._known.append(known)

    def forget(self, key: str) -> None:
        """Removes a question, if it is known."""
        for i, each in enumerate(self._known):
            if each.key == key:
                del self._known[i]
                self._near.remove(i)
                return

    def repeated(self, text: str, vector: Floats) -> tuple[KnownQuestion, float] | None:
        """The known question that a new one [D] repeats, and its likeness; None where it is not sure."""
        found = self._nearest(text, vector)
        return found if found and found[1] >= self.limit else None

    def nearest(self, vector: Floats, count: int, least: float) -> Sequence[tuple[KnownQuestion, float]]:
        """The `count` known questions that are most like one, the most like first, with their likeness: `least` or
        more.
        """
        if not self._known:
            return ()
        found = zip(*self._near.nearest(vector, count), strict=True)
        return [(self._known[i], float(likeness)) for i, likeness in found if likeness >= least]

    def _nearest(self, text: str, vector: Floats) -> tuple[KnownQuestion, float] | None:
        """The known question that another repeats if LEAST is the limit."""
        if not self._known:
            return None
        likeness = self._near.likeness(vector)
        best = int(likeness.argmax())
        found = self._known[best]
        if likeness[best] < LEAST:
            return None
        near = np.flatnonzero(likeness > likeness[best] - MARGIN)
        has_rivals = any(self._known[i].answer != found.answer for i in near)
        if has_rivals or is_swapped(found.text, text):
            return None
        return (found, float(likeness[best])) if has_values(found.answer, found.text, text) else None

    def _test(self, known: KnownQuestion, vector: Floats) -> None:
        found = self._nearest(known.text, vector)
        if found is None or found[0].key == known.key:
            return
        said = found[0].answer
        if known.answer or said == known.wrong:
            self._tests = [*self._tests, (found[1], said == known.answer)][-TESTS:]
            self.limit = limit_of_repeats(self._tests)


def base_of(vectors: Floats) -> float:
    """The mean cosine of different questions [n, D], of length 1."""
    count = len(vectors)
    return float(((vectors @ vectors.T).sum() - count) / (count * (count - 1)))


def is_swapped(one: str, other: str) -> bool:
    """Whether two questions are the same but for words in the same place, which make them different questions."""
    first, second = words_of(one), words_of(other)
    found = SequenceMatcher(None, [*map(_stem, first)], [*map(_stem, second)], autojunk=False)
    return found.ratio() >= SAME_FRAME and any(code[0] == "replace" for code in found.get_opcodes())


def has_values(answer: str, known: str, new: str) -> bool:
    """Whether a new question has the words that the answer takes from the known one, and no other numbers."""
    of_new = {*map(_stem, words_of(new))}
    of_known = {*map(_stem, words_of(known))}
    taken = {*map(_stem, words_of(answer))} & of_known if _is_form(answer) else set()
    numbers = {word for word in of_new ^ of_known if any(map(str.isdigit, word))}
    return taken <= of_new and not numbers


def _is_form(answer: str) -> bool:
    """Whether an answer is JSON or markup, in which words of the question are values."""
    return answer.lstrip()[:1] in ("{", "[", "<")


def _stem(word: str) -> str:
    """A word without an ending of English, so that "keys" and "key" are one word."""
    found = re.sub(r"(?:ing|ed|es|s)$", "", word)
    return found if len(found) >= STEM - 1 else word
