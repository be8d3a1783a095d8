"""Rows with labels as a source of examples: the first step fits heads of classes alone, the others train all.

A head that is fitted to the vectors of the untrained encoder takes seconds and no backward pass. Training from there
changes the encoder less than training from a random head (Kumar et al. 2022, linear probing before fine-tuning).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, ClassVar

import numpy as np

from ..adapters.heads import CLASSES, HeadKind
from ..data.lengths import Lengths
from ..data.packing import Batch, Example
from ..errors import DataError, UsageError
from ..models.base import Structure
from ..objectives.base import Objective
from ..objectives.labelling import Labelling
from ..objectives.multilabel import Multilabel
from ..serving.sureness import Sureness
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
        heads = self.parts.decoder.label_heads()  # those of classes come first
        if isinstance(self.parts.objective, Multilabel):
            [(weights, bias)] = heads
            weights[:], bias[:] = logistic.fit_each(vectors, self.parts.objective.present(examples))
        for (head, classes), (weights, bias) in zip(self._classes(examples), heads, strict=False):
            weights[:], bias[:] = logistic.fit(vectors, classes, head.size)
        return Learned([], 1.0, loss=self.measure(examples[:MEASURED]).loss)

    def _classes(self, examples: Sequence[Example]) -> Iterator[tuple[HeadKind, np.ndarray]]:
        """Each head of classes, and the class [n] of each example by it."""
        first = 0
        for number, head in enumerate(self.parts.objective.heads):
            if head.name == CLASSES.name:
                yield head, np.array([example.document[number] for example in examples], np.int32) - first
            first += head.size

    def vectors(self, examples: Sequence[Example]) -> np.ndarray:
        """The vectors [n, D] of examples, each of length 1."""
        micros = self.parts.micros
        return np.concatenate([self.parts.decoder.pooled(batch)
                               for batch in micros.one_by_one(micros.cut(examples)) if isinstance(batch, Batch)])

    def measure(self, examples: Sequence[Example]) -> Measurement:
        """The loss, and the share of rows whose labels are all right."""
        if self.parts.objective.needs_logp:
            return super().measure(examples)
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

    # ---- when an answer is sure -----------------------------------------------------------------------------------

    def facts(self, learned: Sequence[Example], held: Sequence[Example]) -> dict[str, Any]:
        """Says by probabilities of answers to examples that were not learned when an answer is sure: by heads that are
        fitted to the others if the heads alone were trained, else by held-out examples.
        """
        if isinstance(self.parts.objective, Multilabel):  # it is not known when a set of labels is sure
            return {}
        has_tags = any(head.name != CLASSES.name and head.size > 1 for head in self.parts.objective.heads)
        found = self._held_out(held) if has_tags or not self._is_base else self._out_of_fold(learned)
        return {"sureness": found.to_json()} if found else {}

    @property
    def _is_base(self) -> bool:
        """Whether the vectors are those of the encoder without an adapter."""
        found = self.parts.decoder.adapter.artifact()
        return not found.tensors and not any(pair.a.any() and pair.b.any() for pair in found.pairs.values())

    def _out_of_fold(self, examples: Sequence[Example]) -> Sureness | None:
        vectors = self.vectors(examples)
        probability = np.ones(len(examples))
        right = np.ones(len(examples), bool)
        for head, classes in self._classes(examples):
            p = logistic.out_of_fold(vectors, classes, head.size)
            probability *= p.max(1)
            right &= p.argmax(1) == classes
        return Sureness.of(probability, right)

    def _held_out(self, examples: Sequence[Example]) -> Sureness | None:
        micros = self.parts.micros
        found = []
        for batch in micros.one_by_one(micros.cut(examples)):
            assert isinstance(batch, Batch)
            logp = self.parts.decoder.labels(batch)
            is_right = logp.argmax(1) == batch.targets
            found += [(float(np.exp(logp[part].max(1).sum())), bool(is_right[part].all())) for _, part in batch.parts()]
        return Sureness.of([p for p, _ in found], [right for _, right in found])
