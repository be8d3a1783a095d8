"""An objective of labels, and heads for them: what trains an encoder in tests of the engine."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from edgetune.adapters.heads import CLASSES, TAGS, HeadKind
from edgetune.data.packing import Batch, Example
from edgetune.objectives.base import Objective, Signal
from edgetune.training.trainer import Trainer

OPTIONS: dict[str, Any] = {"rank": 4, "batch_size": 8, "max_length": 48, "precision": "exact", "threads": 2}


@dataclass(frozen=True)
class Labels(Objective):
    """L = -(1/N) sum w log p of labels, by these heads."""

    name: ClassVar[str] = "labels"
    method: ClassVar[str] = "labels"
    kinds: tuple[HeadKind, ...] = ()

    @property
    def heads(self) -> tuple[HeadKind, ...]:  # type: ignore[override]
        return self.kinds

    def count(self, examples: Sequence[Example]) -> float:
        return float(sum(example.supervised for example in examples))

    def weights(self, logp: np.ndarray, batch: Batch) -> Signal:
        return Signal(batch.supervised_weights, -float((logp * batch.supervised_weights).sum(dtype=np.float64)))


def classes(size: int, label: str = "") -> HeadKind:
    return replace(CLASSES, size=size, label=label)


def tags(size: int) -> HeadKind:
    return replace(TAGS, size=size)


def open_trainer(path: Path, *heads: HeadKind, **options: Any) -> Trainer:
    return Trainer(path, objective=Labels(heads), **{**OPTIONS, **options})


def at_first(tokens: np.ndarray, label: int) -> Example:
    """A document with its label at the first token."""
    return Example(tokens, np.eye(1, tokens.size, dtype=np.float32)[0], labels=np.full(tokens.size, label, np.int32))
