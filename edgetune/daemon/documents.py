"""Documents that a daemon answers from: the index of its options, and the vector stores of its clients."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..retrieval.passages import Passages, open_passages, passages_in
from ..retrieval.searching import Found
from ..serving.question import Question
from .options import DaemonConfig
from .state.files import Files
from .vector_stores import VectorStores


@dataclass(frozen=True)
class Stores:
    """Several vector stores, searched as one index."""

    stores: VectorStores
    ids: Sequence[str]

    def search(self, query: str, limit: int) -> Found:
        return self.stores.search(self.ids, query, limit)

    def refresh(self) -> int:
        """Always 0: they are searched for one question."""
        return 0

    def close(self) -> None:
        """Does nothing: they stay open for others."""


class Documents:
    """The documents of a daemon. Close it. Raises the errors of Index."""

    stores: VectorStores

    def __init__(self, config: DaemonConfig) -> None:
        self.passages: Passages | None = None  # of the index of the options, around every chat
        if config.index:
            self.passages = open_passages(Path(config.index).expanduser(), config.passages, config.threads)

    def open_stores(self, folder: Path, files: Files, config: DaemonConfig) -> VectorStores:
        """Opens the vector stores of clients. folder: of the state. Close them."""
        self.stores = VectorStores(folder, files, config)
        return self.stores

    def close(self) -> None:
        if self.passages:
            self.passages.close()

    def around(self, ids: Sequence[str], count: int) -> Passages:
        """Passages of vector stores, for one question. Raises NotFoundError."""
        for id in ids:
            self.stores.get(id)
        return Passages(Stores(self.stores, ids), count)

    def cited(self, question: Question) -> list[dict[str, Any]] | None:
        """The sources of the passages that stand before a question: none where nothing was found, None where no
        documents are asked.
        """
        asked = passages_in(question.around) or self.passages
        return asked.sources(question.messages or ()) if asked else None
