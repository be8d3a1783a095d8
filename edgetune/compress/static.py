"""A table of one vector a token from an encoder: model2vec's recipe (Tulkens and van Dongen, 2024).

Each token passes through the encoder alone, between [CLS] and [SEP]. Of these vectors the principal components are
kept, and a token weighs a / (a + p), where p is its frequency by Zipf's law: vocabularies are sorted by it. Tokens that
no text can hold are left out. Vectors are stored as int8 with one scale, which a vector of length 1 does not need.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, cast

import numpy as np
from numpy.typing import NDArray

from ..errors import UsageError
from ..formats.gguf import TABLE, Gguf, Tensor, write_gguf
from ..llamacpp.wordpiece import WordPiece
from ..serving.embedding import EncoderFile
from .progress import Progress

A = 1e-4  # model2vec's coefficient
BATCH = 512  # tokens between two reports of progress
_KEPT = ("general.name", "general.license", "tokenizer.ggml.model", "tokenizer.ggml.pre",
         "tokenizer.ggml.normalizer.lowercase", "tokenizer.ggml.normalizer.strip_accents")
_MARKS = tuple(f"tokenizer.ggml.{name}_token_id" for name in ("bos", "eos", "seperator", "unknown", "padding", "mask"))


def write_table(path: Path, encoder: EncoderFile, width: int, on_progress: Progress) -> dict[str, Any]:
    """Write the table's GGUF; its facts. Raises UsageError for a width above the encoder's."""
    if width > encoder.embedder.width:
        raise UsageError(f"static is {width}, the encoder's vectors have {encoder.embedder.width} numbers",
                         f"give at most {encoder.embedder.width}")
    gguf = encoder.gguf
    tokenizer = WordPiece(gguf)
    marks = {cast(int, gguf.metadata[key]) for key in _MARKS if key in gguf.metadata}
    kept = [i for i in range(tokenizer.n_vocab) if i in marks or tokenizer.is_reached(i)]
    vectors = _of_tokens(encoder, tokenizer, kept, on_progress)
    reduced, explained = _principal(vectors, width)
    weighted = reduced * _weights(len(kept))[:, None]
    weighted[np.isin(kept, list(marks))] = 0
    table = np.round(weighted * (127 / np.abs(weighted).max())).astype(np.int8)
    tensor = Tensor("token_embd.weight", table.shape, "I8", table.reshape(-1).view(np.uint8))
    metadata = {"general.type": "model", f"{TABLE}.embedding_length": width, **_keys(gguf, kept)}
    write_gguf(path, TABLE, metadata, {tensor.name: tensor})
    return {"tokens": len(kept), "width": width, "variance_kept": explained}


def _of_tokens(encoder: EncoderFile, tokenizer: WordPiece, kept: list[int], on_progress: Progress) -> NDArray[
        np.float32]:
    """[n, D] by the encoder, each of length 1."""
    out = np.empty((len(kept), encoder.embedder.width), np.float32)
    for begin in range(0, len(kept), BATCH):
        on_progress("computing tokens", begin, len(kept))
        texts = [[tokenizer.cls, token, tokenizer.sep] for token in kept[begin : begin + BATCH]]
        for _ in encoder.embedder.embed(out[begin : begin + BATCH], texts):
            pass
    return out


def _principal(vectors: NDArray[np.float32], width: int) -> tuple[NDArray[np.float64], float]:
    """[n, width], the first principal components; their share of the variance."""
    centred = vectors - vectors.mean(0, dtype=np.float64)
    values, axes = np.linalg.eigh(centred.T @ centred)
    axes = axes[:, ::-1][:, :width]
    signs = np.sign(axes[np.abs(axes).argmax(0), np.arange(width)])  # of an axis either would do
    return centred @ (axes * signs), float(values[::-1][:width].sum() / values.sum())


def _weights(count: int) -> NDArray[np.float64]:
    shares = 1 / np.arange(2, count + 2)
    shares /= shares.sum()
    return A / (A + shares)


def _keys(gguf: Gguf, kept: list[int]) -> dict[str, Any]:
    """The keys of the vocabulary of these tokens."""
    new = {old: i for i, old in enumerate(kept)}
    keys = {key: gguf.metadata[key] for key in _KEPT if key in gguf.metadata}
    tokens = cast(list[str], gguf.metadata["tokenizer.ggml.tokens"])
    keys["tokenizer.ggml.tokens"] = [tokens[i] for i in kept]
    return keys | {key: new[cast(int, gguf.metadata[key])] for key in _MARKS if key in gguf.metadata}
