"""Pairs of texts whose vectors an encoder learns to bring together: a query and its passage, with the keys that
sentence-transformers uses, or those of a question and its answer.

    {"anchor": ..., "positive": ..., "negative": ...}     negative: a passage that does not belong, in all rows or none
    {"prompt": ..., "completion": ...}

A row is a group of two or three examples, in that order.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import replace

import numpy as np

from ..errors import DataError, UsageError
from ..llamacpp.tokenizer import Tokenizer
from ..llamacpp.tokenizers import AnyTokenizer
from .around import Instruction
from .labelled import Read, encode, example_of
from .packing import Example
from .prompted import in_group, with_keys
from .rows import Row, is_blank, row_text

EXPECTED = "anchor and positive, or prompt and completion: a query and its passage"
_SHAPES = {"pair": ("anchor", "positive"), "prompt": ("prompt", "completion")}
NEGATIVE = "negative"


def shape_of(row: Row) -> str:
    """pair or prompt; DataError for another row."""
    for shape, keys in _SHAPES.items():
        if isinstance(row, Mapping) and all(key in row for key in keys):
            return shape
    with_keys(row, _SHAPES["pair"], "is no pair of texts", EXPECTED)
    raise AssertionError


def check_learnable(row: Row) -> str:
    """The shape of a row whose texts are not empty. Raises DataError."""
    texts_of(row)
    return shape_of(row)


def texts_of(row: Row) -> list[str]:
    """The query, its passage, and a passage that does not belong where there is one. Raises DataError."""
    shape = shape_of(row)
    assert isinstance(row, Mapping)
    found = []
    for key in (*_SHAPES[shape], *([NEGATIVE] if shape == "pair" and NEGATIVE in row else [])):
        text = row_text(row, key)
        if is_blank(text):
            raise DataError(f"{key} is empty", "write it, or remove the row")
        found.append(text.strip())
    return found


def examples_of(row: Row, _shape: str, tokenizer: AnyTokenizer, _system: Instruction,
                max_length: int) -> Iterable[Example]:
    """The texts, each with one position that gives its vector."""
    if isinstance(tokenizer, Tokenizer):
        raise UsageError("the model writes text, and vectors are learned by an encoder", "take one, such as minilm")
    reads = [Read(text, encode(tokenizer, text, max_length)) for text in texts_of(row)]
    return in_group([replace(example_of(read, ""), document=np.zeros(1, np.int32), item="") for read in reads])
