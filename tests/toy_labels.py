"""Rows {"sentence": ..., "label": 0, 1, ...} of an objective that classifies, as a module of data/ reads them."""

from __future__ import annotations

import numpy as np

from edgetune.data.packing import Example
from edgetune.errors import DataError

EXPECTED = "sentence with label"


def shape_of(row):
    if not {"sentence", "label"} <= row.keys():
        raise DataError("the row has no label", f"expected is {EXPECTED}")
    return "sentence"


check_learnable = shape_of


def examples_of(row, _shape, tokenizer, _system, max_length):
    """The label stands at the first token."""
    tokens = np.array(tokenizer.encode(row["sentence"]), np.int32)[:max_length]
    weights = np.eye(1, tokens.size, dtype=np.float32)[0]
    return [Example(tokens, weights, labels=np.full(tokens.size, row["label"], np.int32))]
