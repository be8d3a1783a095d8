"""Vectors of texts from a table of one vector a token, which `edgetune compress --static` makes; numpy computes them.

A text's vector is the sum of its tokens', made of length 1. [CLS], [SEP] and [UNK] have zeros. The file is mapped, so
the memory that it takes is that of the tokens that occur.
"""

from __future__ import annotations

from collections.abc import Generator, Sequence

import numpy as np
from numpy.typing import NDArray

from ..formats.gguf import Gguf
from ..llamacpp.embedding import check_tokens
from ..llamacpp.wordpiece import WordPiece

TOGETHER = 256  # texts between two turns of the iterator


class TableEmbedder:
    """Vectors by a table's GGUF, with the methods of llamacpp.embedding.Embedder. Raises as check_table does."""

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
