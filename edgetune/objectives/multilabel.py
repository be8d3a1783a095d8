"""Several labels for a question, or none: a head says of each whether it is in the answer. For encoders.

The answer is a JSON list of texts, such as ["kitchen", "light"].
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray

from ..adapters.heads import MULTILABEL, HeadKind
from ..data import labelled
from ..data.labelled import Read
from ..data.packing import Batch, Example
from ..errors import DataError
from .base import Signal, register
from .labelling import TINY, Classified, Floats, HeadTargets, WithLabels

THRESHOLD = 0.5  # the probability from which on a label is in an answer


@register
@dataclass(frozen=True)
class Multilabel(WithLabels):
    """L = -(1/N) sum of the mean over labels of y log p + (1 - y) log(1 - p), p by a sigmoid, over N rows."""

    name: ClassVar[str] = "multilabel"
    method: ClassVar[str] = "multilabel"
    needs_logp: ClassVar[bool] = True
    head: ClassVar[HeadKind] = MULTILABEL
    says_sure: ClassVar[bool] = False

    def fitted(self, learned: Sequence[Example]) -> Multilabel:
        if self.labels:
            return self
        answers = [labelled.list_of(labelled.answer_of(example)) for example in learned]
        return replace(self, labels=labelled.labels_of([label for answer in answers for label in answer]))

    def prepared(self, examples: Sequence[Example]) -> list[Example]:
        """An example of one supervised position, whose `item` has the numbers of its labels."""
        found = []
        for example in examples:
            numbers = sorted(set(self.numbers(labelled.list_of(labelled.answer_of(example)))))
            found.append(replace(example, document=np.zeros(1, np.int32), item=json.dumps(numbers)))
        return found

    def targets(self, examples: Sequence[Example]) -> list[HeadTargets]:
        return [HeadTargets.of_all(self.present(examples))]

    def present(self, examples: Sequence[Example]) -> NDArray[np.float32]:
        """Which labels the answers of prepared examples have: 1 or 0, [n, k]."""
        found = np.zeros((len(examples), len(self.labels)), np.float32)
        for row, example in zip(found, examples, strict=True):
            row[json.loads(example.item)] = 1
        return found

    def weights(self, logp: NDArray[np.float32], batch: Batch) -> Signal:
        """logp: the head's outputs z [S, k], by whose sigmoid a label is there."""
        z = logp
        y = self.present(batch.examples)
        a = (y - 1 / (1 + np.exp(-z))) / np.float32(z.shape[1])
        losses = (np.logaddexp(0, z) - y * z).mean(1, dtype=np.float64)
        right = ((z >= 0) == y.astype(bool)).all(1)
        return Signal(a, float(losses.sum()), {"accuracy": (float(right.sum()), float(right.size))}, losses=losses)

    def answer(self, read: Read, p: Floats) -> Classified:  # noqa: ARG002
        chosen = p[0] >= THRESHOLD
        answer = [label for label, is_there in zip(self.labels, chosen, strict=True) if is_there]
        probability = float(np.maximum(p[0], 1 - p[0]).prod())
        return Classified(json.dumps(answer, ensure_ascii=False), probability, p[0].copy(), probability)

    def losses(self, read: Read, p: Floats, answer: str) -> Floats | None:
        try:
            y = self.present(self.prepared([labelled.example_of(read, answer)]))[0]
        except DataError:
            return None
        right = np.where(y == 1, p[0], 1 - p[0])
        return np.array([-np.log(np.maximum(right, TINY)).mean()], np.float32)

    def canonical(self, answer: str) -> str:
        """The labels of a list in their order, each once."""
        try:
            return json.dumps(sorted(set(labelled.list_of(answer))), ensure_ascii=False)
        except DataError:
            return answer
