"""Every registered adapter family with small options, and a trainer that has learned a few random rows with it."""

from __future__ import annotations

from typing import Any

from edgetune.adapters.base import LLAMA_CPP, MERGED, PROJECTIONS, Family, families
from edgetune.bench.train import random_rows
from edgetune.data.dataset import Dataset
from edgetune.options import declared
from edgetune.training.trainer import Trainer

SMALL = {"alpha": 4.0, "prune_every": 1, "sources": 4}
NAMES = sorted(families())
PAIRS = [name for name in NAMES if families()[name].served_by == LLAMA_CPP and PROJECTIONS in families()[name].adapts]
MERGING = [name for name in NAMES if families()[name].served_by == MERGED]
OPTIONS: dict[str, Any] = {"batch_size": 3, "max_length": 24, "precision": "exact", "threads": 2, "lr": 0.01}


def small(name: str, rank: int = 4) -> Family:
    return families()[name](**options_of(name, rank))


def options_of(name: str, rank: int = 4) -> dict[str, Any]:
    """Those of SMALL that the family has, at a rank."""
    own = [spec.name for spec in declared(families()[name])]
    sized = {"target_rank": -(-rank // 2),
             **dict.fromkeys(("rank", "prefix_tokens", "prompt_tokens", "adapter_width"), rank)}
    return {key: value for key, value in {**SMALL, **sized}.items() if key in own}


def data(n: int, seed: int = 0) -> Dataset:
    rows = random_rows(416, n, 20, seed)
    return Dataset(rows, [{}] * n, "text", truncated=0, skipped=0, digest=f"random {seed}")


def trained(model: Any, family: Family, **options: Any) -> Trainer:
    trainer = Trainer(model, family=family, **{**OPTIONS, "steps": 6, **options})
    trainer.add_examples(data(6).examples)
    trainer.train()
    return trainer
