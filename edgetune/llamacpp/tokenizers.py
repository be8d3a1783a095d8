"""The tokenizer of a model: llama.cpp's for one that writes text, our own with places for an encoder."""

from __future__ import annotations

import os
from contextlib import suppress

from ..errors import FormatError, UnsupportedError
from ..formats.gguf import ENCODERS, Gguf, open_gguf
from ..formats.named import find_model
from .tokenizer import Tokenizer
from .wordpiece import WordPiece

AnyTokenizer = Tokenizer | WordPiece


def open_tokenizer(file: str | os.PathLike[str] | Gguf, markup: str = "escape") -> AnyTokenizer:
    """The tokenizer of a GGUF, open or named. markup: as of Tokenizer. Raises the errors of either."""
    try:
        found = Tokenizer(file)
    except UnsupportedError:
        with suppress(FormatError):  # the first error says more
            gguf = file if isinstance(file, Gguf) else open_gguf(find_model(file))
            if gguf.architecture in ENCODERS:
                return WordPiece(gguf)
        raise
    found.markup = markup
    return found
