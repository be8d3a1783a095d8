"""The tokenizer of a model: llama.cpp's for one that writes text, one with places for an encoder."""

from __future__ import annotations

import os

from ..formats.gguf import ENCODER, ENCODERS, Gguf, open_gguf
from ..formats.named import find_model
from .pieces import Pieces
from .tokenizer import Tokenizer
from .wordpiece import WordPiece

EncoderTokenizer = WordPiece | Pieces
AnyTokenizer = Tokenizer | EncoderTokenizer


def open_tokenizer(file: str | os.PathLike[str] | Gguf, markup: str = "escape",
                   thoughts: str = "keep") -> AnyTokenizer:
    """The tokenizer of a GGUF, open or named. markup, thoughts: as of Tokenizer. Raises the errors of either."""
    gguf = file if isinstance(file, Gguf) else open_gguf(find_model(file))
    if gguf.metadata.get("general.architecture") in ENCODERS:
        return open_encoder_tokenizer(gguf)
    found = Tokenizer(gguf)
    found.markup = markup
    found.thoughts = thoughts
    return found


def open_encoder_tokenizer(gguf: Gguf) -> EncoderTokenizer:
    """That of an encoder. Raises FormatError or UnsupportedError for a file that is no whole one."""
    is_wordpiece = gguf.metadata.get("tokenizer.ggml.model", ENCODER) == ENCODER
    return WordPiece(gguf) if is_wordpiece else Pieces(gguf)
