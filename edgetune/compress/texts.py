"""Text to judge and to distill by: files as strings, and as windows of tokens."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from ..data.dataset import Dataset, load
from ..errors import DataError
from ..llamacpp.tokenizer import Tokenizer

Windows = NDArray[np.int32]
_WHOLE = 2**31 - 1  # rows and texts are not cut before they become windows


def read(path: str | Path, tokenizer: Tokenizer) -> Dataset:
    """A .txt file, or rows as for training; DataError for what cannot be used."""
    return load(path, tokenizer, max_length=_WHOLE)


def strings(path: str | Path, tokenizer: Tokenizer) -> list[str]:
    """Each text of the file as a model sees it, chat template and special tokens included."""
    return [tokenizer.decode(example.tokens.tolist()) for example in read(path, tokenizer).examples]


def windows(path: str | Path, tokenizer: Tokenizer, length: int) -> Windows:
    """int32 [N, length]: the file's texts one after another, cut into windows; what is left over is dropped.

    Raises DataError for a text shorter than two windows.
    """
    tokens = np.concatenate([example.tokens for example in read(path, tokenizer).examples])
    count = tokens.size // length
    if count < 2:
        raise DataError(f"{path} has {tokens.size} tokens, the least is {2 * length}", "give more text")
    return np.ascontiguousarray(tokens[: count * length].reshape(count, length), np.int32)


def at_most(rows: Windows, tokens: int) -> Windows:
    """Cuts as many windows as hold `tokens` tokens (at least one), spread evenly over the text."""
    count = max(1, min(len(rows), tokens // rows.shape[1]))
    chosen: Windows = rows[np.arange(count) * len(rows) // count]
    return chosen


def apart(rows: Windows) -> tuple[Windows, Windows]:
    """(for calibration, for measuring): the last fifth, at least one window, is never calibrated on."""
    held = max(1, len(rows) // 5)
    return rows[:-held], rows[-held:]
