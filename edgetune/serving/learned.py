"""What an adapter of an encoder has learned to answer: labels, or JSON of a form; from probabilities to answers.

Letters: S labels asked for, k labels of a head.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from ..adapters.base import Artifact
from ..adapters.heads import CLASSES, HeadKind, heads_of_fields
from ..data.labelled import is_object
from ..data.packing import Example
from ..data.slots import Form, leaves
from ..data.tags import best_tags
from ..errors import DataError, FormatError
from ..llamacpp.wordpiece import Encoded

TINY = np.float32(1e-30)  # the least probability whose logarithm is taken
Floats = NDArray[np.float32]


@dataclass(frozen=True)
class Classified:
    """The answer to a question and its probability. probabilities: of all labels, in the order of `labels`, [k]; empty
    where the answer is made of several.
    """

    label: str
    probability: float
    probabilities: Floats


@dataclass(frozen=True)
class Read:
    """A question as an encoder reads it."""

    text: str
    encoded: Encoded

    @property
    def tokens(self) -> int:
        return len(self.encoded.ids)


@dataclass(frozen=True, eq=False)
class Learned:
    """labels: that are answers; () where answers have several fields, whose `form` is then known. heads: that answer.
    artifact: the adapter.
    """

    artifact: Artifact
    labels: tuple[str, ...]
    form: Form | None
    heads: tuple[HeadKind, ...]

    @classmethod
    def of(cls, found: Artifact, source: str) -> Learned:
        """What an adapter learned. source: names it. Raises FormatError for one without labels, or without a head."""
        labels, form = learned(found, source)
        return cls(found, labels, form, _heads(found, labels, form, source))

    def example(self, read: Read) -> Example:
        """One that asks for all labels: of each head of classes, and of each token if there are tags."""
        tokens = np.array(read.encoded.ids, np.int32)
        first = self._first
        if self.form is None:
            return Example(tokens, np.zeros(tokens.size, np.float32), document=first[:-1].astype(np.int32))
        return Example(tokens, np.ones(tokens.size, np.float32), document=first[:-2].astype(np.int32),
                       labels=np.full(tokens.size, first[-2], np.int32))

    def answer(self, read: Read, p: Floats) -> Classified:
        """The answer by the probabilities [S, labels] of an example's labels."""
        if self.form is None:
            best = int(p[0].argmax())
            return Classified(self.labels[best], float(p[0, best]), p[0].copy())
        *fields, of_tokens = self._parts(p)
        places = read.encoded.places
        tagged = best_tags(np.log(np.maximum(of_tokens, TINY)), read.text, places)
        answer = self.form.answer([int(field.argmax()) for field in fields], tagged, read.text, places)
        is_word = [begin < until for begin, until in places]
        of_tags = of_tokens[np.arange(len(tagged)), tagged][is_word]
        return Classified(answer, float(np.prod([*(field.max() for field in fields), *of_tags])), p[:0, 0])

    def loss(self, read: Read, p: Floats, answer: str) -> float | None:
        """-log p a label of a right answer, as in training; None for an answer with something that was never learned.
        """
        if self.form is None:
            found = [p[0, self.labels.index(answer)]] if answer in self.labels else []
        else:
            found = self._of_fields(read, p, answer)
        return float(-np.log(np.maximum(found, TINY)).mean()) if found else None

    def _of_fields(self, read: Read, p: Floats, answer: str) -> list[np.float32]:
        """The probability of each closed field's value, and of each word piece's tag; [] where one is not known."""
        assert self.form
        *fields, of_tokens = self._parts(p)
        places = read.encoded.places
        try:
            values = json.loads(answer) if is_object(answer) else {}
            if not values or {path for path, _ in leaves(values)} - {*self.form.order}:
                return []
            classes = self.form.classes(values)
            tags = self.form.tagged(values, read.text, places)
        except DataError:
            return []
        return [*(field[number] for field, number in zip(fields, classes, strict=True)),
                *(row[tag] for row, tag, (begin, end) in zip(of_tokens, tags, places, strict=True) if begin < end)]

    def _parts(self, p: Floats) -> Iterator[Floats]:
        """p of each closed field's values [k], then of each token's tags [T, k]."""
        *bounds, last = pairwise(self._first)
        for number, (begin, end) in enumerate(bounds):
            yield p[number, begin:end]
        yield p[len(bounds):, slice(*last)]

    @property
    def _first(self) -> NDArray[np.int64]:
        """The first label of each head, and their number."""
        return np.cumsum([0, *(head.size for head in self.heads)])


def learned(found: Artifact, source: str) -> tuple[tuple[str, ...], Form | None]:
    """The labels of an adapter, or the form of its answers. Raises FormatError for one without either. source: names
    it.
    """
    try:
        labels = tuple(map(str, found.objective.get("labels") or ()))
        form = Form.of_json(written) if (written := found.objective.get("form")) else None
    except (KeyError, TypeError) as error:
        raise FormatError(f"{source} is damaged: its form is not readable ({error})",
                          "take an earlier adapter") from None
    if not labels and form is None:
        raise FormatError(f"{source} has no labels", "name an adapter that edgetune train made of an encoder")
    return labels, form


def _heads(found: Artifact, labels: Sequence[str], form: Form | None, source: str) -> tuple[HeadKind, ...]:
    """The heads that answer. Raises FormatError where the adapter lacks one."""
    heads = heads_of_fields(form.sizes, form.tags) if form else (replace(CLASSES, size=len(labels)),)
    for head in heads:
        values = found.tensors.get(f"head.{head.parameters}")
        if values is None or not np.isfinite(values).all():
            raise FormatError(f"{source} has no head for {head.size} {head.parameters}", "take an earlier adapter")
    return heads
