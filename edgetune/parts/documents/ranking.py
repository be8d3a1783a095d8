"""Ranks the chunks of an index for a query: by words (BM25) and by meaning (vectors), joined by their ranks.

G. V. Cormack, C. L. A. Clarke, S. Buettcher: Reciprocal Rank Fusion outperforms Condorcet and individual Rank Learning
Methods (2009): a chunk's score is the sum of 1 / (60 + its rank) over the rankings.

Ranks say nothing of whether the index answers the query at all. That is the evidence: the nearest vector, and how many
of the query's words, weighted by their rareness, the best passage has. Its limit comes from the index itself: queries
of a few words of one of its sentences, which it answers, have more, but for one in twenty.
"""

from __future__ import annotations

import math
import random
import re
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

from .encoding import Encoding
from .store import Store

LONGEST_QUERY = 2000  # characters of a query that count
FUSED = 60  # of the paper
DEPTH = 50  # of each ranking
COMMON = 0.25  # share of the chunks above which a word says too little to be looked for
LOOKED_AT = 5  # of the best chunks, for the evidence
OF_VECTORS = 2 / 3  # of the evidence; the rest is of words
QUERIES = 200  # that are made of sentences, for the limit
WORDS = 0.2  # share of a sentence's words that such a query has,
LEAST_WORDS = 3  # that it has at least
MOST_WORDS = 40  # of a sentence that count
REFUSED = 0.05  # share of them that has less evidence than the limit
_END = re.compile(r"(?<=[.!?])\s+")


@dataclass(frozen=True)
class Ranked:
    """chunks: (chunk, score), the best first, score 1 for the first of both rankings. by_words, by_vector: the
    rankings. evidence: from 0 to 1.
    """

    chunks: list[tuple[int, float]]
    by_words: list[int]
    by_vector: list[int]
    cosines: Mapping[int, float]
    evidence: float


class Ranking:
    """Ranks the chunks of an open index. For one thread at a time."""

    def __init__(self, store: Store, encoding: Encoding) -> None:
        self._store = store
        self._encoding = encoding
        self._chunks, _ = store.totals()

    def ranked(self, query: str) -> Ranked:
        terms = self._store.terms_of(query)
        holders = self._store.holders(terms)
        by_words = [chunk for chunk, _ in self._store.by_words(self._rare(terms, holders), DEPTH)]
        cosines = dict(self._store.by_vector(self._encoding.vectors([query])[0], DEPTH))
        chunks = fused([by_words, [*cosines]])
        best = [chunk for chunk, _ in chunks[:LOOKED_AT]]
        weights = {term: self._weight(holders.get(term, 0)) for term in terms}
        words = max((self._share(weights, chunk) for chunk in best), default=0.0)
        nearest = max((cosines.get(chunk, 0.0) for chunk in best), default=0.0)
        evidence = OF_VECTORS * max(0.0, nearest) + (1 - OF_VECTORS) * words
        return Ranked(chunks, by_words, [*cosines], cosines, evidence)

    def _rare(self, terms: Mapping[str, str], holders: Mapping[str, int]) -> list[str]:
        """The words of a query that are in the index and not in much of it; all, where there are no others."""
        rare = [terms[term] for term, count in holders.items() if count <= COMMON * self._chunks]
        return rare or [terms[term] for term in holders]

    def _weight(self, count: int) -> float:
        """What BM25 weighs a word by that is in `count` chunks."""
        return math.log(1 + (self._chunks - count + 0.5) / (count + 0.5))

    def _share(self, weights: Mapping[str, float], chunk: int) -> float:
        """The share of the query's words, by weight, that a chunk has."""
        source, text = self._store.passage(chunk)
        held = self._store.terms_of(f"{source.heading} {text}")
        return sum(weight for term, weight in weights.items() if term in held) / (sum(weights.values()) or 1)

    def limit(self, on_query: Callable[[int], object]) -> float:
        """The evidence below which nothing was found. on_query gets the number of each of QUERIES before it begins."""
        drawn = random.Random(0)
        found = []
        for number in range(QUERIES if self._chunks else 0):
            on_query(number)
            found.append(self.ranked(self._query(drawn)).evidence)
        found.sort()
        return found[int(REFUSED * QUERIES)] if found else 0.0

    def _query(self, drawn: random.Random) -> str:
        """Some words, in their order, of a sentence of a chunk."""
        _, text = self._store.passage(drawn.randrange(self._chunks) + 1)
        sentences = [sentence for sentence in _END.split(text) if len(sentence.split()) > LEAST_WORDS] or [text]
        words = drawn.choice(sentences).split()[:MOST_WORDS]
        count = min(len(words), max(LEAST_WORDS, round(WORDS * len(words))))
        return " ".join(words[place] for place in sorted(drawn.sample(range(len(words)), count)))[:LONGEST_QUERY]


def fused(rankings: Iterable[Sequence[int]]) -> list[tuple[int, float]]:
    """(chunk, score) by reciprocal rank fusion, the best first; 1 is the score of the first of all rankings."""
    scores: dict[int, float] = defaultdict(float)
    count = 0
    for ranking in rankings:
        count += 1
        for rank, chunk in enumerate(ranking, 1):
            scores[chunk] += (FUSED + 1) / (FUSED + rank)
    return sorted(((chunk, score / count) for chunk, score in scores.items()), key=lambda each: (-each[1], each[0]))
