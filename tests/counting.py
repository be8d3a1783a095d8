"""Rows that count upwards, which a tiny model can learn, and options that learn them."""

from pathlib import Path
from typing import Any

import numpy as np

from edgetune.data.dataset import Dataset
from edgetune.data.packing import Example
from edgetune.training.trainer import Trainer

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


def answered(tokens, learned, group=0):
    """An example whose last `learned` tokens are supervised."""
    weights = np.zeros(len(tokens), np.float32)
    weights[max(len(tokens) - learned, 1):] = 1
    return Example(np.array(tokens, np.int32), weights, group)


def dataset(n, seed=0, **options):
    return Dataset(sequences(n, seed, **options), [""] * n, "text", 0, 0, f"sha256:{n}-{seed}")


def one_step(path: Path, **options: Any) -> Trainer:
    """A trainer of two rows of 12 tokens, 0 to 23, before its step."""
    trainer = Trainer(path, **{"rank": 2, "max_length": 16, "batch_size": 2, "steps": 1, "threads": 1, **options})
    rows = np.arange(24, dtype=np.int32).reshape(2, 12)
    trainer.add_examples([Example(row, np.r_[0, np.ones(11)].astype(np.float32)) for row in rows])
    return trainer
