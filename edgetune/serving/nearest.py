"""Examples that are like a question: the rows whose questions have the nearest vectors, by a model for vectors.

The vectors of the rows are made once, and kept in the cache under the digest of their texts and of that model.
Letters: n rows, D width of a vector.
"""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Sequence
from contextlib import suppress
from functools import lru_cache
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from ..data.question import question_text
from ..data.rows import Row
from ..disk import cache, cache_folder, replaced
from ..formats.gguf import fingerprint
from ..formats.named import CONVERTED, find_model
from .embedding import EncoderFile, TableFile, open_vectors
from .neighbours import Neighbours

ENCODER = CONVERTED
FOLDER = "vectors"
REMEMBERED = 512  # vectors of questions
KEPT = 32  # files of vectors in the cache


class NearestRows:
    """Rows by the nearness of their questions, for any number of threads. encoder: a GGUF or a name, as open_vectors
    opens it, whose errors it raises. threads: 0 for one a physical core.
    """

    def __init__(self, rows: Sequence[Row], encoder: str = ENCODER, threads: int = 0) -> None:
        self.rows = rows
        self._opened: EncoderFile | TableFile = open_vectors(find_model(encoder), threads)
        self._turn = threading.Lock()
        self._vector = lru_cache(REMEMBERED)(lambda question: self.embed([question])[0])
        self._known = Neighbours(self._kept([question_text(row) for row in rows]))

    def close(self) -> None:
        """Frees the model for vectors."""
        self._opened.close()

    def order(self, question: str) -> NDArray[np.intp]:
        """The indices of all rows [n], the nearest first; of equally near ones the earlier first."""
        if not question.strip():
            return np.arange(len(self.rows))
        return self._known.nearest(self._vector(question))[0]

    def embed(self, texts: Sequence[str]) -> NDArray[np.float32]:
        """The vectors [n, D] of texts, each of length 1; of a text that is too long the beginning counts."""
        embedder = self._opened.embedder
        tokens = [embedder.truncate(embedder.encode(text)) for text in texts]
        found = np.empty((len(texts), embedder.width), np.float32)
        with self._turn:
            for _ in embedder.embed(found, tokens):
                pass
        return found

    def _kept(self, texts: list[str]) -> NDArray[np.float32]:
        """The vectors of the rows, from the cache where it has them."""
        digest = hashlib.sha256("\0".join([fingerprint(self._opened.gguf), *texts]).encode("utf-8", "surrogatepass"))
        path = cache_folder() / FOLDER / f"{digest.hexdigest()[:32]}.npy"
        with suppress(OSError, ValueError):
            found: NDArray[np.float32] = np.load(path, allow_pickle=False)
            if found.shape == (len(texts), self._opened.embedder.width) and found.dtype == np.float32:
                return found
        made = self.embed(texts)
        cache(path, lambda: _write(path, made), KEPT)
        return made


def _write(path: Path, vectors: NDArray[np.float32]) -> None:
    with replaced(path) as beside, beside.open("wb") as file:
        np.save(file, vectors)
