"""Searches an index: the best passages for a query, or none where the index does not answer it."""

from __future__ import annotations

import threading
from contextlib import ExitStack, closing, suppress
from dataclasses import dataclass
from math import isfinite
from pathlib import Path
from types import TracebackType
from typing import Any, TypeVar

from ...errors import EdgetuneError, FormatError, UsageError
from .encoding import Encoding
from .ranking import LONGEST_QUERY, Ranking
from .store import Source, Store

MOST = 50  # passages of a search
Fact = TypeVar("Fact", str, float)


@dataclass(frozen=True)
class Passage:
    """A passage that was found. score: from 0 to 1, 1 for the best by words and by vectors."""

    source: Source
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
    Raises UsageError where there is no file, FormatError for what is no index, MismatchError where its encoder is
    another now, NotFoundError where that is not on this device.
    """

    def __init__(self, path: str | Path, threads: int = 0, encoding: Encoding | None = None) -> None:
        self.path = Path(path)
        self._is_own = encoding is None
        self._lock = threading.Lock()
        if not self.path.is_file():
            raise UsageError(f"there is no index {path}", "make it with edgetune documents index FOLDER -o INDEX")
        self._file = identity(self.path)
        with ExitStack() as opened:
            self._store = opened.enter_context(closing(Store(self.path)))
            self._encoding = encoding or opened.enter_context(
                closing(Encoding(self._fact(self._store, "encoder", str), threads)))
            self._read(self._store)
            opened.pop_all()

    def _fact(self, store: Store, name: str, kind: type[Fact]) -> Fact:
        """What an index says of itself. Raises FormatError for one that does not say it."""
        found = store.facts().get(name)
        if not isinstance(found, kind) or (isinstance(found, float) and not isfinite(found)):
            raise FormatError(f"{self.path} is no whole index: its {name} is {found!r:.80}", "make it again")
        return found

    def _read(self, store: Store) -> None:
        """Raises FormatError for an index that is not whole, MismatchError for that of another encoder."""
        self._encoding.check(self._fact(store, "encoder_sha256", str), str(self.path))
        self.least = self._fact(store, "least_evidence", float)
        self._ranking = Ranking(store, self._encoding)

    def refresh(self) -> int:
        """Opens the file again where another index has its name now, and returns a number that changes with it. Where
        it cannot be opened, the earlier one stays.
        """
        with self._lock, suppress(EdgetuneError, OSError):
            if (now := identity(self.path)) != self._file:
                store = Store(self.path)
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
            ranked = self._ranking.ranked(query)
            best = ranked.chunks[:limit] if ranked.evidence >= least else []
            return Found([Passage(*self._store.passage(chunk), score) for chunk, score in best], ranked.evidence, least)


def identity(path: Path) -> tuple[int, int, int]:
    """What changes when another file takes a name. Raises OSError."""
    found = path.stat()
    return found.st_dev, found.st_ino, found.st_mtime_ns
