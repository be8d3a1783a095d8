"""Rows with labels as a source of examples: the first step fits heads of classes alone, the others train all.

A head that is fitted to the vectors of the untrained encoder takes seconds and no backward pass. Training from there
changes the encoder less than training from a random head (Kumar et al. 2022, linear probing before fine-tuning).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

import numpy as np

from ..adapters.heads import CLASSES
from ..data.lengths import Lengths
from ..data.packing import Batch, Example
from ..errors import DataError, UsageError
from ..models.base import Structure
from ..objectives.base import Objective
from ..objectives.labelling import Labelling
from . import logistic
from .batches import Batches
from .config import TrainConfig
from .passes import Measurement
from .source import Learned, Room, Rows

HEAD = 1  # the step that fits the heads
MEASURED = 256  # examples by which its loss is known


class Labelled(Rows):
    milestones: ClassVar[dict[int, str]] = {HEAD: "the heads alone"}

    @classmethod
    def room(cls, objective: Objective, config: TrainConfig, lengths: Lengths, structure: Structure) -> Room:
        assert isinstance(objective, Labelling)
        if not objective.is_fitted:
            raise UsageError(f"the labels that {objective.name} learns are not known", "name the rows, or give labels")
        return super().room(objective, config, lengths, structure)

    def of_step(self, step: int, batches: Batches) -> Learned:
        if step > HEAD:
            return super().of_step(step, batches)
        examples = batches.examples
        vectors = self.vectors(examples)
        first = 0
        heads = zip(self.parts.objective.heads, self.parts.decoder.label_heads(), strict=True)
        for number, (head, (weights, bias)) in enumerate(heads):
            if head.name == CLASSES.name:
                classes = np.array([example.document[number] for example in examples], np.int32) - first
                weights[:], bias[:] = logistic.fit(vectors, classes, head.size)
            first += head.size
        return Learned([], 1.0, loss=self.measure(examples[:MEASURED]).loss)

    def vectors(self, examples: Sequence[Example]) -> np.ndarray:
        """The vectors [n, D] of examples, each of length 1."""
        micros = self.parts.micros
        return np.concatenate([self.parts.decoder.pooled(batch)
                               for batch in micros.one_by_one(micros.cut(examples)) if isinstance(batch, Batch)])

    def measure(self, examples: Sequence[Example]) -> Measurement:
        """The loss, and the share of rows whose labels are all right."""
        micros = self.parts.micros
        losses: list[float] = []
        total = 0.0
        right = supervised = 0
        for batch in micros.one_by_one(micros.cut(examples)):
            assert isinstance(batch, Batch)
            best = np.empty(batch.supervised.size, np.int32)
            weighted = -self.parts.decoder.score(batch, best) * batch.supervised_weights
            for example, part in batch.parts():
                losses.append(float(weighted[part].sum()) / self.parts.objective.count([example]))
                right += bool((best[part] == batch.targets[part]).all())
            total += float(weighted.sum(dtype=np.float64))
            supervised += batch.supervised.size
        if not losses:
            raise DataError("the rows have no label", "check their completions")
        return Measurement(total / self.parts.objective.count(examples), supervised, {"accuracy": right / len(losses)},
                           tuple(losses))
