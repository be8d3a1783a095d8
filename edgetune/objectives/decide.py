"""Decisions: a head for each typed question that was learned; one pass of the encoder answers all of them.

A row answers some of the questions, and the others' heads learn nothing from it. Answers without a typed question are
those of one more, which has no name. Letters: S labels asked for, k labels of all heads.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import zip_longest
from typing import Any, ClassVar, NamedTuple

import numpy as np

from ..adapters.heads import CLASSES, HeadKind
from ..data import decisions, labelled
from ..data.labelled import Read
from ..data.packing import Example
from ..errors import DataError, NotFoundError
from .base import register
from .labelling import TINY, Classified, Floats, HeadOptions, HeadTargets, Labelling


class LearnedQuestion(NamedTuple):
    """key: of the typed question; "": the one without a name. labels: in the order of the head's outputs."""

    key: str
    labels: tuple[str, ...]


@register
@dataclass(frozen=True)
class Decide(Labelling):
    """L = -(1/N) sum s log p over the labels of the rows, s the share that a label has of its answer.

    questions: [key, labels] of each; () for those of the rows.
    """

    name: ClassVar[str] = "decide"
    method: ClassVar[str] = "decide"
    calibrates: ClassVar[bool] = True

    questions: tuple[LearnedQuestion, ...] = ()

    def __post_init__(self) -> None:
        found = tuple(LearnedQuestion(str(key), tuple(labels)) for key, labels in self.questions)
        object.__setattr__(self, "questions", found)  # run.json has lists

    @property
    def heads(self) -> tuple[HeadKind, ...]:  # type: ignore[override]  # the rows decide their sizes
        if not self.questions:
            return (replace(CLASSES, size=0),)
        return tuple(replace(CLASSES, size=len(question.labels), label=str(number))
                     for number, question in enumerate(self.questions))

    @property
    def is_fitted(self) -> bool:
        return bool(self.questions)

    def options(self) -> dict[str, Any]:
        return {"questions": [[question.key, [*question.labels]] for question in self.questions]}

    def fitted(self, learned: Sequence[Example]) -> Decide:
        """Knows the questions of the rows that have rows of two labels. Raises DataError if none has."""
        if self.questions:
            return self
        said: dict[str, set[str]] = defaultdict(set)
        for example in learned:
            for key, label in labelled.decisions_of(example).items():
                said[key] |= {label} if isinstance(label, str) else {*label}
        found = [LearnedQuestion(key, _labels(key, labels)) for key, labels in sorted(said.items()) if len(labels) > 1]
        if not found:
            key, labels = next(iter(said.items()), ("", set()))
            raise DataError(f"all rows have the label {', '.join(labels)!r:.80}" if labels else "there are no rows",
                            "add rows with other labels")
        for question in found:
            if len(question.labels) > labelled.MOST_LABELS:
                raise DataError(f"a question has {len(question.labels)} labels, at most {labelled.MOST_LABELS} are "
                                "learned", labelled.TAKE_DECODER)
        return replace(self, questions=tuple(found))

    def prepared(self, examples: Sequence[Example]) -> list[Example]:
        """Examples with the labels of their answers. Each head reads one label of an example: of an answer with several
        probable labels there are several examples. One that answers no learned question is left out.
        """
        found = []
        for example in examples:
            shares = [self._shares(key, label) for key, label in labelled.decisions_of(example).items()]
            for turn in zip_longest(*shares):
                labels = [part for part in turn if part]
                if labels:
                    numbers, weights = zip(*sorted(labels), strict=True)
                    found.append(replace(example, document=np.array(numbers, np.int32),
                                         shares=np.array(weights, np.float32), item=""))
        return found

    def _shares(self, key: str, label: str | dict[str, float]) -> list[tuple[int, float]]:
        """(number among all heads' labels, share) of each label of an answer; none for a question that is not learned.
        Raises DataError for a label that is not learned.
        """
        if key not in self._places:
            return []
        given = {label: 1.0} if isinstance(label, str) else label
        for name in given:
            if name not in self._places[key]:
                raise DataError(f"the label {name!r:.80} of a question is none of the {len(self._places[key])} that "
                                "are learned", "add rows with it, or remove this one")
        return [(self._places[key][name], share) for name, share in given.items()]

    @cached_property
    def _places(self) -> dict[str, dict[str, int]]:
        """{key: {label: its number among the labels of all heads}}"""
        return {question.key: {label: int(first) + number for number, label in enumerate(question.labels)}
                for question, first in zip(self.questions, self._firsts, strict=False)}

    @cached_property
    def _firsts(self) -> np.ndarray:
        """The first label of each head, and the number of all labels."""
        return np.cumsum([0, *(len(question.labels) for question in self.questions)])

    def targets(self, examples: Sequence[Example]) -> list[HeadTargets]:
        rows = np.repeat(np.arange(len(examples)), [example.document.size for example in examples])
        labels = np.concatenate([example.document for example in examples])
        shares = np.concatenate([example.shares for example in examples])
        heads = np.searchsorted(self._firsts, labels, side="right") - 1
        return [HeadTargets(rows[own], labels[own] - np.int32(first), shares[own])
                for first, own in ((self._firsts[number], heads == number) for number in range(len(self.questions)))]

    def options_of(self, typed: str) -> HeadOptions | None:
        if typed not in self._places:
            return None
        number = self.number(typed)
        return HeadOptions(number, self.questions[number].labels, int(self._firsts[number]))

    def asking(self, *reads: Read) -> Example:
        """Asks for the labels of the typed questions, or of all, if one is not typed. Raises NotFoundError for a
        question that is not learned.
        """
        tokens = np.array(reads[0].encoded.ids, np.int32)
        numbers = {self.number(read.typed) for read in reads if read.typed}
        if not all(read.typed for read in reads):
            numbers = {*range(len(self.questions))}
        return Example(tokens, np.zeros(tokens.size, np.float32),
                       document=np.array([self._firsts[number] for number in sorted(numbers)], np.int32))

    def number(self, key: str) -> int:
        """The number of a question among the learned ones. Raises NotFoundError for another."""
        for number, question in enumerate(self.questions):
            if question.key == key:
                return number
        raise NotFoundError(f"the question {key:.200} was not learned",
                            "send corrections of it, or rows that answer it")

    @property
    def labels(self) -> tuple[str, ...]:
        """The labels of the question without a name, which are the first of all; () if it was not learned."""
        return self.questions[0].labels if "" in self._places else ()

    def knows(self, typed: str) -> bool:
        return not typed or typed in self._places

    def answer(self, read: Read, p: Floats) -> Classified:
        """The likeliest label of the typed question that is asked; without one, of the question without a name; if that
        was not learned, of each question, as an object by their keys.
        """
        if self.knows(read.typed) and (read.typed or self.labels):
            every, [(label, probability)] = self._likeliest(p, [self.number(read.typed)])
            return Classified(label, probability, every, probability)
        return self._object(p, [*range(len(self.questions))])

    def graded(self, read: Read, p: Floats, right: str) -> tuple[Classified, Floats | None]:
        labels = None if read.typed else decisions.labels_in(right)
        found = self.answer(read, p) if labels is None else self._object(
            p, [number for number, question in enumerate(self.questions) if question.key in labels])
        return found, self.losses(read, p, right)

    def losses(self, read: Read, p: Floats, answer: str) -> Floats | None:
        """Returns -sum s log p of each question that a right answer answers."""
        try:
            examples = self.prepared([labelled.example_of(read, answer)])
        except DataError:
            return None
        if not examples:
            return None
        classes = np.concatenate([example.document for example in examples])
        shares = np.concatenate([example.shares for example in examples])
        heads = np.searchsorted(self._firsts, classes, side="right") - 1
        nats = -shares * np.log(np.maximum(p.max(0)[classes], TINY))
        return np.bincount(heads, nats)[np.unique(heads)].astype(np.float32)

    def _likeliest(self, p: Floats, numbers: Sequence[int]) -> tuple[Floats, list[tuple[str, float]]]:
        """The probabilities of all labels, and the likeliest one of some questions with its own."""
        every = p.max(0) if len(p) > 1 else p[0].copy()  # each head is asked once, and the others have 0
        own = [every[self._firsts[number]:self._firsts[number + 1]] for number in numbers]
        return every, [(self.questions[number].labels[int(each.argmax())], float(each.max()))
                       for number, each in zip(numbers, own, strict=True)]

    def _object(self, p: Floats, numbers: Sequence[int]) -> Classified:
        every, found = self._likeliest(p, numbers)
        label = decisions.written({self.questions[number].key: label
                                   for number, (label, _) in zip(numbers, found, strict=True)})
        probability = math.prod(each for _, each in found)
        return Classified(label, probability, every, probability)

    def canonical(self, answer: str) -> str:
        """The likeliest label of each question, first of those that were learned, in their order."""
        if not (labels := decisions.labels_in(answer)):
            return answer
        keys = [question.key for question in self.questions if question.key in labels]
        keys += [key for key in labels if key not in keys]
        return decisions.written({key: decisions.likeliest(labels[key]) for key in keys})

    def count(self, examples: Sequence[Example]) -> float:
        return sum(float(example.shares.sum(dtype=np.float64)) for example in examples)


def _labels(key: str, said: set[str]) -> tuple[str, ...]:
    """The labels of a question's head: all that a score or a noul has, else those of the rows, in order."""
    question = decisions.read_key(key)
    return question.labels if question and question.labels else tuple(sorted(said))
