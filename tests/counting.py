"""Rows that count upwards, which a tiny model can learn, and options that learn them."""

from __future__ import annotations

import numpy as np

from edgetune.data.dataset import Dataset
from edgetune.data.packing import Example

OPTIONS = {"rank": 4, "lr": 2e-2, "batch_size": 4, "max_length": 48, "threads": 2, "warmup": 2, "steps": 12,
           "precision": "exact"}  # held-out scores are, and are compared


def sequences(n, seed=0, low=8, high=40):
    """Rows that count upwards: something that a tiny model can learn."""
    rng = np.random.default_rng(seed)
    rows = []
    for _ in range(n):
        length = int(rng.integers(low, high))
        start = int(rng.integers(0, 40))
        weights = np.ones(length, np.float32)
        weights[:3] = 0
        rows.append(Example(np.arange(start, start + length, dtype=np.int32), weights))
    return rows


def dataset(n, seed=0, **options):
    return Dataset(sequences(n, seed, **options), [""] * n, "text", 0, 0, f"sha256:{n}-{seed}")
