"""Likeness of texts, by the words that they share (tf-idf: Salton and Buckley 1988)."""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Mapping, Sequence

Vector = Mapping[str, float]


class Likeness:
    """To each of some texts."""

    def __init__(self, texts: Sequence[str]) -> None:
        words = [_words(text) for text in texts]
        self._spread = Counter(word for of_text in words for word in set(of_text))
        self._count = len(texts)
        self._vectors = [self._vector(of_text) for of_text in words]

    def to(self, text: str) -> list[float]:
        """The likeness of a text to each of them, from 0, no word in common, to 1."""
        vector = self._vector(_words(text))
        return [sum(vector.get(word, 0.0) * weight for word, weight in other.items()) for other in self._vectors]

    def _vector(self, words: Sequence[str]) -> Vector:
        """A vector of length 1: how often each word is there, the rarer among the texts the weightier."""
        found = {word: (1 + math.log(count)) * math.log((self._count + 1) / (self._spread[word] + 0.5))
                 for word, count in Counter(words).items()}
        length = math.sqrt(sum(weight * weight for weight in found.values()))
        return {word: weight / length for word, weight in found.items()} if length else {}


def _words(text: str) -> list[str]:
    return re.findall(r"\w+", text.casefold())
