"""The common part of objectives by which an encoder learns labels, of a document or of its tokens, and answers.

Letters: S labels asked for, k labels of all heads.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, ClassVar, NamedTuple

import numpy as np
from numpy.typing import NDArray

from ..adapters.heads import CLASSES, TAGS, HeadKind
from ..data import labelled
from ..data.labelled import Read
from ..data.packing import Batch, Example
from ..data.rows import RowParser
from ..errors import DataError
from .base import Objective, Signal

TINY = np.float32(1e-30)  # the least probability whose logarithm is taken
Floats = NDArray[np.float32]


@dataclass(frozen=True)
class Classified:
    """The answer to a question and its probability. probabilities: of all labels, in the order of `labels`, [k]; empty
    where the answer is made of several. kind: the probability of its fields of few values, without values from the
    question; of another answer, its own.
    """

    label: str
    probability: float
    probabilities: Floats
    kind: float


class HeadTargets(NamedTuple):
    """What a regression on vectors learns for a head. rows [n]: the examples that have a label for it; values: the
    class of each, int32 [n], or which labels it has, float32 [n, k]. shares [n]: how much each counts.
    """

    rows: NDArray[np.intp]
    values: NDArray[Any]
    shares: Floats

    def some(self, chosen: NDArray[np.bool_]) -> HeadTargets:
        """Returns those that are chosen [n]."""
        return HeadTargets(self.rows[chosen], self.values[chosen], self.shares[chosen])

    @classmethod
    def of_all(cls, values: NDArray[Any]) -> HeadTargets:
        """Returns the targets of examples that all have a label."""
        return cls(np.arange(len(values)), values, np.ones(len(values), np.float32))


class HeadOptions(NamedTuple):
    """The options of a question. head: its number; labels: in the order of its outputs; first: the number of the first
    label among those of all heads.
    """

    head: int
    labels: Sequence[str]
    first: int


@dataclass(frozen=True)
class Labelling(Objective):
    """L = -(1/N) sum w log p over the labels of a step, N = sum w: 1 for a label of a document, the weight of a token.

    says_sure: whether the probability of an answer says when it is sure. calibrates: whether probabilities of each head
    are calibrated.
    """

    rows: ClassVar[RowParser] = labelled
    source: ClassVar[str] = "labelled"
    defaults: ClassVar[Mapping[str, Any]] = {"lr": 2e-3, "rank": 16, "epochs": 15.0}
    says_sure: ClassVar[bool] = True
    calibrates: ClassVar[bool] = False

    @property
    @abstractmethod
    def is_fitted(self) -> bool:
        """Whether its labels are known."""

    @property
    def labels(self) -> tuple[str, ...]:
        """The labels that it knows, in the order of the head's outputs; () where answers have several fields."""
        return ()

    @property
    def has_tags(self) -> bool:
        """Whether answers have values from the question."""
        return any(head.name == TAGS.name and head.size > 1 for head in self.heads)

    def targets(self, examples: Sequence[Example]) -> list[HeadTargets]:
        """What a regression on the vectors of prepared examples learns for each head that reads these."""
        found: list[HeadTargets] = []
        first = 0
        for number, head in enumerate(self.heads):
            if head.name == CLASSES.name:
                classes = np.array([example.document[number] for example in examples], np.int32) - first
                found.append(HeadTargets.of_all(classes))
            first += head.size
        return found

    def options_of(self, typed: str) -> HeadOptions | None:  # noqa: ARG002
        """Returns the learned options of a typed question; None for one that is not learned. typed: its key; "": the
        question without a name.
        """
        return None

    def asking(self, *reads: Read) -> Example:
        """Questions with one text, which ask for all labels: those of each head of classes, and of each token's tags.
        """
        read = reads[0]
        tokens = np.array(read.encoded.ids, np.int32)
        firsts = np.cumsum([0, *(head.size for head in self.heads)], dtype=np.int32)  # of each head's labels
        of_tokens = [first for head, first in zip(self.heads, firsts, strict=False) if head.name == TAGS.name]
        document = firsts[:len(self.heads) - len(of_tokens)]
        if not of_tokens:
            return Example(tokens, np.zeros(tokens.size, np.float32), document=document)
        return Example(tokens, np.ones(tokens.size, np.float32), document=document,
                       labels=np.full(tokens.size, of_tokens[0], np.int32))

    @abstractmethod
    def answer(self, read: Read, p: Floats) -> Classified:
        """The answer by the probabilities [S, k] of the labels that `asking` asks for; 0 of those of other heads."""

    def knows(self, typed: str) -> bool:  # noqa: ARG002
        """Whether a question can be asked. typed: the key of the typed one; "": it is none."""
        return True

    def graded(self, read: Read, p: Floats, right: str) -> tuple[Classified, Floats | None]:
        """The answer to what a right answer answers, and the losses of this. p: as of `answer`."""
        return self.answer(read, p), self.losses(read, p, right)

    def losses(self, read: Read, p: Floats, answer: str) -> Floats | None:
        """-log p of each label of a right answer, as in training; None for an answer with something that was never
        learned. p: as of `answer`.
        """
        try:
            example = self.prepared([labelled.example_of(read, answer)])[0]
        except DataError:
            return None
        classes = example.document
        words = np.flatnonzero(example.weights)
        found = [p[np.arange(classes.size), classes]]
        if words.size:
            found.append(p[classes.size + words, example.labels[words]])
        nats: Floats = -np.log(np.maximum(np.concatenate(found), TINY))
        return nats

    def canonical(self, answer: str) -> str:
        """An answer of a row in the form in which `answer` writes it."""
        return answer

    def measured(self, held: Sequence[Example]) -> list[Example]:
        """Rows whose labels are learned. The loss of another, which any sure answer gets wrong, would outweigh all that
        was learned from a few rows.
        """
        found = []
        for example in held:
            with suppress(DataError):
                found += self.prepared([example])
        return found or self.prepared(held)  # which raises if there are some

    def count(self, examples: Sequence[Example]) -> float:
        return sum(example.document.size + float(example.weights.sum(dtype=np.float64)) for example in examples)

    def weights(self, logp: NDArray[np.float32], batch: Batch) -> Signal:
        w = batch.supervised_weights
        return Signal(w, -float(np.dot(logp.astype(np.float64), w.astype(np.float64))))


@dataclass(frozen=True)
class WithLabels(Labelling):
    """An objective with one head and its labels. head: without a size. labels: in the order of its outputs; () for
    those of the rows.
    """

    head: ClassVar[HeadKind]

    labels: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        object.__setattr__(self, "labels", tuple(self.labels))  # run.json has a list

    @property
    def heads(self) -> tuple[HeadKind, ...]:  # type: ignore[override]  # the rows decide its size
        return (replace(self.head, size=len(self.labels)),)

    def options_of(self, typed: str) -> HeadOptions | None:
        return None if typed or self.head.name != CLASSES.name else HeadOptions(0, self.labels, 0)

    @property
    def is_fitted(self) -> bool:
        return bool(self.labels)

    def numbers(self, labels: Iterable[str]) -> list[int]:
        """The places of labels in `labels`. Raises DataError for one that is not there."""
        found = []
        for label in labels:
            if label not in self._places:
                raise DataError(f"the label {label!r:.80} is none of the {len(self.labels)} that are learned",
                                "add rows with it, or remove this one")
            found.append(self._places[label])
        return found

    @cached_property
    def _places(self) -> dict[str, int]:
        return {label: number for number, label in enumerate(self.labels)}

    def options(self) -> dict[str, Any]:
        return {"labels": list(self.labels)}
