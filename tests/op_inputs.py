"""Inputs for tests of ops."""

from __future__ import annotations

import numpy as np


def noise(seed: int, *shape: int) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal(shape, dtype=np.float32)


def starts(tokens: int, documents: int) -> np.ndarray:
    """start [T] of `documents` documents, the first one token long."""
    begins = np.concatenate([[0], np.linspace(1, tokens, documents, dtype=int)[:-1]])[:documents]
    return begins[np.searchsorted(begins, np.arange(tokens), side="right") - 1].astype(np.int32)
