"""Rows that repeat others nearly word for word, and rows that share a passage with held-out ones.

Candidates come from MinHash signatures of character 5-grams in bands (Broder 1997); RapidFuzz decides by the edits that
turn one text into the other.
"""

from __future__ import annotations

import zlib
from collections import defaultdict
from collections.abc import Iterable

import numpy as np
from numpy.typing import NDArray

from ...data.words import plain, words_of
from ...errors import EdgetuneError, install_hint

GRAM = 5  # characters
BANDS, IN_BAND = 24, 3  # of a signature: texts with half of their 5-grams in common meet with a chance of 96 %
WORDS = 8  # of a passage that a held-out row must not share
PRIME = (1 << 31) - 1


class NearDuplicates:
    """Texts seen so far, each with the answer that belongs to it. threshold: the similarity from which two are nearly
    the same, 0 to 1; 1: only where words are equal.
    """

    def __init__(self, threshold: float) -> None:
        self.threshold = threshold
        self._texts: list[str] = []
        self._equal: set[tuple[str, str]] = set()
        self._bands: dict[tuple[str, int, bytes], list[int]] = defaultdict(list)
        rng = np.random.default_rng(0)
        self._factors = rng.integers(1, PRIME, BANDS * IN_BAND, np.int64)
        self._added = rng.integers(0, PRIME, BANDS * IN_BAND, np.int64)

    def add(self, text: str, answer: str = "") -> bool:
        """Whether a text is new; then it is kept. A text with another answer is new, however alike it is: "lamp 1 on"
        and "lamp 2 on" differ in one character.
        """
        said = plain(text)
        if (said, answer) in self._equal:
            return False
        self._equal.add((said, answer))
        if self.threshold >= 1:
            return True
        keys = [(answer, band, part.tobytes()) for band, part in enumerate(self._signature(said))]
        candidates = {index for key in keys for index in self._bands.get(key, ())}
        if any(similarity(said, self._texts[index]) >= self.threshold for index in sorted(candidates)):
            return False
        for key in keys:
            self._bands[key].append(len(self._texts))
        self._texts.append(said)
        return True

    def _signature(self, text: str) -> NDArray[np.int64]:
        """[BANDS, IN_BAND] the least hashes of the text's 5-grams."""
        grams = {text[i : i + GRAM] for i in range(max(1, len(text) - GRAM + 1))}
        hashes = np.array(sorted(zlib.crc32(gram.encode()) % PRIME for gram in grams), np.int64)
        mixed = (hashes[:, None] * self._factors + self._added) % PRIME
        least: NDArray[np.int64] = mixed.min(axis=0)
        return least.reshape(BANDS, IN_BAND)


def similarity(one: str, other: str) -> float:
    """1 for equal texts, 0 for texts without a common character: by insertions and deletions."""
    try:
        from rapidfuzz.fuzz import ratio
    except ModuleNotFoundError:
        raise EdgetuneError("near-duplicates are found by the package rapidfuzz, which is not installed",
                            f"{install_hint('rows')}, or drop equal rows only, by near: 1") from None
    return float(ratio(one, other)) / 100


class HeldPassages:
    """Passages of held-out texts. A text overlaps where it shares WORDS words in a row with one, or says the same."""

    def __init__(self, texts: Iterable[str]) -> None:
        self._equal: set[str] = set()
        self._grams: set[tuple[str, ...]] = set()
        for text in texts:
            words = words_of(text)
            self._equal.add(" ".join(words))
            self._grams.update(_grams(words))

    def overlap(self, text: str) -> bool:
        words = words_of(text)
        return " ".join(words) in self._equal or not self._grams.isdisjoint(_grams(words))


def _grams(words: list[str]) -> set[tuple[str, ...]]:
    return {tuple(words[i : i + WORDS]) for i in range(len(words) - WORDS + 1)}
