"""The encoder of an index: texts to vectors of whole numbers, and who it is."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from ...errors import MismatchError
from ...formats.bundle import open_bundle
from ...formats.gguf import ENCODERS
from ...formats.named import name_of
from ...serving.embedding import EncoderFile, TableFile, Vectors, open_vectors
from ...serving.encoder import Encoder
from ...serving.encoder_model import AT_ONCE, EncoderVectors

Bytes = NDArray[np.int8]
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
