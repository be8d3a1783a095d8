"""Vectors of texts for clients: by the model that answers, without its adapters, or by a file of --embeddings.

An adapter would change vectors that a client compares with stored ones, so none is used. One request is computed at a
time, a step of it between two decodes of answers: neither waits for all of the other.
"""

from __future__ import annotations

import threading
from collections.abc import Sequence
from contextlib import ExitStack, closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..errors import Interrupted, NotFoundError
from ..formats.named import find_model
from ..serving.answering import Answering
from ..serving.embedding import EncoderFile, TableFile, Vectors, open_vectors
from .options import DaemonConfig, model_name
from .threads import Places

Text = str | Sequence[int]


@dataclass(frozen=True)
class Embedded:
    """Vectors, float32 [n, D], each of length 1. tokens: of all texts."""

    model: str
    vectors: NDArray[np.float32]
    tokens: int


class Embeddings:
    """The embedders of a service. base: names of the model that answers, the first one its own. Close it before that.

    Raises the errors of find_model and EncoderFile for --embeddings.
    """

    def __init__(self, batcher: Answering[Any], config: DaemonConfig, base: Sequence[str]) -> None:
        self.base = base
        self.file = find_model(Path(config.embeddings).expanduser()) if config.embeddings else None
        self.name = model_name(self.file) if self.file else base[0]
        self._batcher = batcher
        self.places = Places(config.queue, "requests for vectors")
        self._turn = threading.Lock()
        self._made = False  # whether vectors were made since `rest`
        self._opened = ExitStack()
        self._of_base: Vectors = batcher.served.embedder()
        self._opened.callback(self._of_base.close)
        self.encoder: EncoderFile | TableFile | None = None
        if self.file:
            self.encoder = open_vectors(self.file, config.threads)
            self._opened.callback(self.encoder.close)

    def close(self) -> None:
        """Frees llama.cpp's memory."""
        self._opened.close()

    def rest(self) -> None:
        """Frees the context of the base's vectors if none were made since the last call."""
        if self._turn.acquire(blocking=False):
            if not self._made:
                self._of_base.close()
            self._made = False
            self._turn.release()

    def width(self, model: str = "") -> int:
        """Returns the length of a vector; errors as in `embed`."""
        return self._named(model)[1].width

    def embed(self, texts: Sequence[Text], model: str = "", cancelled: threading.Event | None = None,
              truncate: bool = False) -> Embedded:
        """Returns the vectors of texts, or of token ids, by the file of --embeddings or, under its name, the base.

        cancelled: set when the request is cancelled. truncate: cut a text that is too long. Raises NotFoundError for a
        model's name, UsageError for a text that is empty or too long, and Interrupted where it is cancelled or the
        service stops.
        """
        name, embedder = self._named(model)
        tokens = [embedder.encode(text) if isinstance(text, str) and text else [*map(int, text)] for text in texts]
        if truncate:
            tokens = [*map(embedder.truncate, tokens)]
        for each in tokens:
            embedder.check(each)  # a text of marks alone counts as empty
        vectors = np.empty((len(tokens), embedder.width), np.float32)
        with self._turn, closing(embedder.embed(vectors, tokens)) as steps:
            self._made = True

            def step() -> bool:
                if cancelled and cancelled.is_set():
                    raise Interrupted("the vectors are not computed any more", "ask again")
                return next(steps, True) is True  # a decode gives None

            self._batcher.between(step)
        return Embedded(name, vectors, sum(map(len, tokens)))

    def _named(self, model: str) -> tuple[str, Vectors]:
        if self.encoder and model in ("", self.name):
            return self.name, self.encoder.embedder
        if model in ("", *self.base):
            return self.base[0], self._of_base
        names = " or ".join(dict.fromkeys((self.name, self.base[0])))
        raise NotFoundError(f"{model!r:.200} makes no vectors", f"ask {names}; adapters do not change vectors")
