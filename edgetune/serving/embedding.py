"""A file that makes vectors of texts, with the model that answers."""

from __future__ import annotations

from collections.abc import Generator, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Protocol, cast

import numpy as np
from numpy.typing import NDArray

from ..errors import UnsupportedError
from ..formats.gguf import ENCODERS, TABLE, Gguf, check_network, open_gguf
from ..llamacpp import library as llamacpp
from ..llamacpp.embedding import Embedder, Pooling, check_tokens
from ..llamacpp.tokenizers import open_encoder_tokenizer
from ..llamacpp.wordpiece import WordPiece

POOLINGS: dict[int, Pooling] = {1: "mean", 2: "first", 3: "last"}  # as files number them
TOGETHER = 256  # texts between two turns of a table's iterator


class Vectors(Protocol):
    """What makes vectors of texts: llamacpp.embedding.Embedder says how."""

    size: int
    width: int
    n_vocab: int

    def encode(self, text: str) -> list[int]: ...
    def truncate(self, tokens: list[int]) -> list[int]: ...
    def check(self, tokens: Sequence[int]) -> None: ...
    def embed(self, out: NDArray[np.float32], texts: Sequence[list[int]]) -> Generator[None]: ...
    def close(self) -> None: ...


class TableEmbedder:
    """Vectors by a GGUF with one vector a token, which `edgetune compress --static` makes; numpy computes them. It has
    the methods of llamacpp.embedding.Embedder. Raises as check_table does.

    A text's vector is the sum of its tokens', made of length 1. [CLS], [SEP] and [UNK] have zeros. The file is mapped,
    so the memory that it takes is that of the tokens that occur.
    """

    size = 1 << 20  # tokens that a text may have

    def __init__(self, gguf: Gguf) -> None:
        tokenizer = WordPiece(gguf)
        tensor = gguf.tensors["token_embd.weight"]
        self.n_vocab, self.width = tensor.shape
        self._table = np.asarray(tensor.data).view(np.int8).reshape(tensor.shape)  # [V, D]
        self.encode = tokenizer.encode

    def close(self) -> None:
        """Nothing is open but the file."""

    def truncate(self, tokens: list[int]) -> list[int]:
        """The beginning of a text that is too long."""
        return tokens[: self.size]

    def check(self, tokens: Sequence[int]) -> None:
        """Raises UsageError as check_tokens does."""
        check_tokens(tokens, self.size, self.n_vocab)

    def embed(self, out: NDArray[np.float32], texts: Sequence[list[int]]) -> Generator[None]:
        """Fill `out` [n, D] with the vectors of n texts (checked); each turn of the iterator is some of them."""
        for i, tokens in enumerate(texts):
            out[i] = self._table[tokens].sum(0, dtype=np.int32)
            if i % TOGETHER == TOGETHER - 1:
                yield
        out /= np.maximum(np.linalg.norm(out, axis=1, keepdims=True), 1e-12)
        yield


class TableFile:
    """A GGUF with one vector a token, opened. Raises FormatError or UnsupportedError for another."""

    def __init__(self, gguf: Gguf) -> None:
        self.gguf = gguf
        self.embedder = TableEmbedder(gguf)

    def close(self) -> None:
        """Nothing is open but the file."""


class EncoderFile:
    """A GGUF opened for vectors: a BERT, or a decoder that was trained for vectors and says how they are pooled.

    Close it. threads: 0 for one a physical core. Raises FormatError or UnsupportedError for a file that makes none.
    """

    def __init__(self, path: Path, threads: int = 0) -> None:
        gguf = open_gguf(path)
        whole = gguf.architecture in ENCODERS
        check_network(gguf)
        pooling = _pooling(gguf)
        size = cast(int, gguf.metadata[f"{gguf.architecture}.context_length"])
        llama = llamacpp.load()
        with ExitStack() as opened:
            model = llamacpp.open_model(gguf.file.link, path)
            opened.callback(llama.llama_model_free, model)
            gguf.file.check(strictly=True)  # the loaded file is the checked one
            self.gguf = gguf
            encode = open_encoder_tokenizer(gguf).encode if whole else None
            self.embedder = Embedder(model, size, whole=whole, encode=encode, pooling=pooling, threads=threads)
            opened.callback(self.embedder.close)
            self._opened = opened.pop_all()

    def close(self) -> None:
        self._opened.close()


def open_vectors(path: Path, threads: int = 0) -> EncoderFile | TableFile:
    """Opens a GGUF for vectors, of any kind. Close it. Raises the errors of EncoderFile and TableFile."""
    gguf = open_gguf(path)
    return TableFile(gguf) if gguf.architecture == TABLE else EncoderFile(path, threads)


def _pooling(gguf: Gguf) -> Pooling:
    number = cast(int, gguf.metadata.get(f"{gguf.architecture}.pooling_type", 0))
    if number not in POOLINGS:
        known = ", ".join(f"{each} ({name})" for each, name in POOLINGS.items())
        raise UnsupportedError(f"{gguf.path} has the pooling_type {number!r:.40}, which makes no vector of a text",
                               f"take a model for vectors, of {known}")
    return POOLINGS[number]
