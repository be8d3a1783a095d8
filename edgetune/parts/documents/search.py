"""Searches an index: by words (BM25) and by meaning (vectors of an encoder), joined by their ranks.

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
import threading
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import ExitStack, closing, suppress
from dataclasses import dataclass
from math import isfinite
from pathlib import Path
from types import TracebackType
from typing import Any, TypeVar

import numpy as np

from ...errors import EdgetuneError, FormatError, MismatchError, UsageError
from ...formats.bundle import open_bundle
from ...formats.gguf import ENCODERS
from ...formats.named import name_of
from ...serving.embedding import EncoderFile, TableFile, Vectors, open_vectors
from ...serving.encoder import Encoder
from ...serving.encoder_model import AT_ONCE, EncoderVectors
from .store import Bytes, Citation, IndexStore

DIGITS = 16  # of a file's SHA-256, by which an index knows its encoder


class Encoding:
    """An encoder, opened for texts. model: its file. width: numbers of a vector. longest: tokens of a text at most.

    Close it. For any thread. threads: 0 for one a physical core. Raises the errors of open_network, and
    UnsupportedError for a file that makes no vectors.
    """

    def __init__(self, model: str | Path, threads: int = 0) -> None:
        gguf = open_bundle(model).gguf
        self.name = name_of(gguf.path)
        self.digest = gguf.file.sha256()[:DIGITS]
        self.nbytes = gguf.path.stat().st_size
        self._file: EncoderFile | TableFile | None = None
        if gguf.architecture in ENCODERS:
            # whole numbers of 8 bits: vectors are stored so too, and it takes half the time of exact products
            encoder = Encoder(gguf, threads, at_once=AT_ONCE, vector_precision="int8")
            self._vectors: Vectors = EncoderVectors(encoder)
            self.nbytes += encoder.busy_bytes
        else:
            self._file = open_vectors(gguf.path, threads)
            self._vectors = self._file.embedder
        self._lock = threading.Lock()
        self.width = self._vectors.width
        self.longest = self._vectors.size

    def close(self) -> None:
        if self._file:
            self._file.close()

    def count(self, text: str) -> int:
        """Tokens of a text, without the marks around it."""
        return max(0, len(self._vectors.encode(text)) - 2)

    def vectors(self, texts: Sequence[str]) -> Bytes:
        """The vectors [n, D] of texts, each scaled so that its largest number is 127: cosines do not see the scale."""
        out = np.zeros((len(texts), self.width), np.float32)
        tokens = [self._vectors.truncate(self._vectors.encode(text)) for text in texts]
        with self._lock:
            for _ in self._vectors.embed(out, tokens):
                pass
        largest = np.maximum(np.abs(out).max(axis=1, keepdims=True), np.float32(1e-12))
        found: Bytes = np.rint(out * (127 / largest)).astype(np.int8)
        return found

    def check(self, digest: str, source: str) -> None:
        """Raises MismatchError unless it is the encoder of an index. source: names the index."""
        if digest != self.digest:
            raise MismatchError(f"{source} was made with another encoder than {self.name}",
                                "name its own encoder, or make the index again")


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


class ChunkRanking:
    """Ranks the chunks of an open index. For one thread at a time."""

    def __init__(self, store: IndexStore, encoding: Encoding) -> None:
        self._store = store
        self._encoding = encoding
        self.chunks, _ = store.totals()

    def ranked(self, query: str) -> tuple[list[tuple[int, float]], float]:
        """The best chunks with their scores, the best first, 1 for the first of both rankings; and the evidence."""
        terms = self._store.terms_of(query)
        holders = self._store.holders(terms)
        rare = [terms[term] for term, count in holders.items() if count <= COMMON * self.chunks]
        looked_for = rare or [terms[term] for term in holders]  # all, where none is rare
        by_words = [chunk for chunk, _ in self._store.by_words(looked_for, DEPTH)]
        cosines = dict(self._store.by_vector(self._encoding.vectors([query])[0], DEPTH))
        chunks = fused([by_words, [*cosines]])
        best = [chunk for chunk, _ in chunks[:LOOKED_AT]]
        weights = {term: self._weight(holders.get(term, 0)) for term in terms}
        words = max((self._share(weights, chunk) for chunk in best), default=0.0)
        nearest = max((cosines.get(chunk, 0.0) for chunk in best), default=0.0)
        evidence = OF_VECTORS * max(0.0, nearest) + (1 - OF_VECTORS) * words
        return chunks, evidence

    def _weight(self, count: int) -> float:
        """What BM25 weighs a word by that is in `count` chunks."""
        return math.log(1 + (self.chunks - count + 0.5) / (count + 0.5))

    def _share(self, weights: Mapping[str, float], chunk: int) -> float:
        """The share of the query's words, by weight, that a chunk has."""
        source, text = self._store.passage(chunk)
        held = self._store.terms_of(f"{source.heading} {text}")
        return sum(weight for term, weight in weights.items() if term in held) / (sum(weights.values()) or 1)

    def limit(self, on_query: Callable[[int], object]) -> float:
        """The evidence below which nothing was found. on_query gets the number of each of QUERIES before it begins."""
        drawn = random.Random(0)
        found = []
        for number in range(QUERIES if self.chunks else 0):
            on_query(number)
            found.append(self.ranked(self._query(drawn))[1])
        found.sort()
        return found[int(REFUSED * QUERIES)] if found else 0.0

    def _query(self, drawn: random.Random) -> str:
        """Some words, in their order, of a sentence of a chunk."""
        _, text = self._store.passage(drawn.randrange(self.chunks) + 1)
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


MOST = 50  # passages of a search
Fact = TypeVar("Fact", str, float)


@dataclass(frozen=True)
class Passage:
    """A passage that was found. score: from 0 to 1, 1 for the best by words and by vectors."""

    source: Citation
    text: str
    score: float

    def to_json(self) -> dict[str, Any]:
        return {"source": str(self.source), "text": self.text, "score": round(self.score, 4), **self.source.to_json()}


@dataclass(frozen=True)
class Found:
    """What a search found. evidence: from 0 to 1, that the index answers the query; passages: none where it is below
    `least`.
    """

    passages: list[Passage]
    evidence: float
    least: float

    def to_json(self) -> dict[str, Any]:
        return {"results": [passage.to_json() for passage in self.passages], "evidence": round(self.evidence, 4),
                "least_evidence": round(self.least, 4)}


class Index:
    """An index, opened for searches. Close it. For any thread. One that is made again is opened by the next search.

    >>> with edgetune.Index("manual.index") as index:
    ...     index.search("How long is the guarantee?").passages[0].source

    path: the file. threads: 0 for one a physical core. encoding: the encoder, open for several indexes; it stays open.
    `files` are the names of its documents, `passages` is the number of their chunks. Raises UsageError where there is
    no file, FormatError for what is no index, MismatchError where its encoder is another now, NotFoundError where that
    is not on this device.
    """

    def __init__(self, path: str | Path, threads: int = 0, encoding: Encoding | None = None) -> None:
        self.path = Path(path)
        self._is_own = encoding is None
        self._lock = threading.Lock()
        if not self.path.is_file():
            raise UsageError(f"there is no index {path}", "make it with edgetune documents index FOLDER -o INDEX")
        self._file = identity(self.path)
        with ExitStack() as opened:
            self._store = opened.enter_context(closing(IndexStore(self.path)))
            self._encoding = encoding or opened.enter_context(
                closing(Encoding(self._fact(self._store, "encoder", str), threads)))
            self._read(self._store)
            opened.pop_all()

    def _fact(self, store: IndexStore, name: str, kind: type[Fact]) -> Fact:
        """What an index says of itself. Raises FormatError for one that does not say it."""
        found = store.facts().get(name)
        if not isinstance(found, kind) or (isinstance(found, float) and not isfinite(found)):
            raise FormatError(f"{self.path} is no whole index: its {name} is {found!r:.80}", "make it again")
        return found

    def _read(self, store: IndexStore) -> None:
        """Raises FormatError for an index that is not whole, MismatchError for that of another encoder."""
        self._encoding.check(self._fact(store, "encoder_sha256", str), str(self.path))
        self.least = self._fact(store, "least_evidence", float)
        self._ranking = ChunkRanking(store, self._encoding)
        self.files = [*store.files()]
        self.passages = self._ranking.chunks

    def refresh(self) -> int:
        """Opens the file again where another index has its name now, and returns a number that changes with it. Where
        it cannot be opened, the earlier one stays.
        """
        with self._lock, suppress(EdgetuneError, OSError):
            if (now := identity(self.path)) != self._file:
                store = IndexStore(self.path)
                try:
                    self._read(store)
                except BaseException:
                    store.close()
                    raise
                self._store.close()
                self._store = store
                self._file = now
        return hash(self._file)

    def close(self) -> None:
        """Closes the file and frees the encoder."""
        self._store.close()
        if self._is_own:
            self._encoding.close()

    def __enter__(self) -> Index:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None,
                 trace: TracebackType | None) -> None:
        self.close()

    @property
    def nbytes(self) -> int:
        """Bytes of memory that its encoder takes."""
        return self._encoding.nbytes

    def search(self, query: str, limit: int = 5, least: float | None = None) -> Found:
        """The `limit` best passages for a query, the best first.

        least: the evidence below which nothing was found; None: that of the index. Raises UsageError for an empty query
        or a limit out of its range.
        """
        query = " ".join(query.split())[:LONGEST_QUERY]
        if not query:
            raise UsageError("the query is empty", "ask something")
        if not 1 <= limit <= MOST:
            raise UsageError(f"limit is {limit} passages", f"choose from 1 to {MOST}")
        self.refresh()
        with self._lock:
            least = self.least if least is None else least
            chunks, evidence = self._ranking.ranked(query)
            best = chunks[:limit] if evidence >= least else []
            return Found([Passage(*self._store.passage(chunk), score) for chunk, score in best], evidence, least)


def identity(path: Path) -> tuple[int, int, int]:
    """What changes when another file takes a name. Raises OSError."""
    found = path.stat()
    return found.st_dev, found.st_ino, found.st_mtime_ns
