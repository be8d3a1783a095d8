"""Classification: a head on the vector of a question says which of the known labels is its answer. For encoders."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import ClassVar

import numpy as np

from ..adapters.heads import CLASSES, HeadKind
from ..data import labelled
from ..data.labelled import Read
from ..data.packing import Example
from ..errors import DataError
from .base import Objective, register
from .decide import Decide
from .labelling import Classified, Floats, WithLabels
from .multilabel import Multilabel
from .tag import Tag


@register
@dataclass(frozen=True)
class Classify(WithLabels):
    """L = -(1/N) sum log p of the rows' labels, by a soft-max over all labels."""

    name: ClassVar[str] = "classify"
    method: ClassVar[str] = "classify"
    head: ClassVar[HeadKind] = CLASSES
    calibrates: ClassVar[bool] = True

    def fitted(self, learned: Sequence[Example]) -> Objective:
        """Answers to typed questions are learned by `Decide`. JSON objects are learned field by field, by `Tag`, where
        they have a form, and JSON lists of texts label by label, by `Multilabel`; else answers that are few texts are
        labels. A combination of fields that no row has is then no label.
        """
        if self.labels:
            return self
        if any(key for example in learned for key in labelled.decisions_of(example)):
            return Decide().fitted(learned)
        answers = [labelled.answer_of(example) for example in learned]
        if all(map(labelled.is_list, answers)):
            return Multilabel().fitted(learned)
        are_few = labelled.are_few(answers)
        if all(map(labelled.is_object, answers)):
            try:
                return Tag().fitted(learned)
            except DataError:
                if not are_few:
                    raise
        if are_few:
            return replace(self, labels=labelled.labels_of(answers))
        odd = next(answer for answer in answers if not labelled.is_object(answer))
        raise DataError(f"most answers occur once, such as {odd!r:.80}: they are no labels", labelled.TAKE_DECODER)

    def prepared(self, examples: Sequence[Example]) -> list[Example]:
        numbers = self.numbers(map(labelled.answer_of, examples))
        return [replace(example, document=np.array([number], np.int32), item="")
                for example, number in zip(examples, numbers, strict=True)]

    def answer(self, read: Read, p: Floats) -> Classified:  # noqa: ARG002
        best = int(p[0].argmax())
        probability = float(p[0, best])
        return Classified(self.labels[best], probability, p[0].copy(), probability)
