"""Tagging: an encoder gives a JSON answer field by field, closed fields by classes, others by tags of its tokens."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Any, ClassVar

import numpy as np

from ..adapters.heads import TAGS, HeadKind, heads_of_fields
from ..data import labelled
from ..data.labelled import Read
from ..data.packing import Example
from ..data.slots import Form, best_tags, form_of
from .base import register
from .labelling import TINY, Classified, Floats, Labelling


@register
@dataclass(frozen=True)
class Tag(Labelling):
    """L = -(1/N) sum log p of each closed field's value, and of each token's tag.

    form: of the answers; None for that of the rows.
    """

    name: ClassVar[str] = "tag"
    method: ClassVar[str] = "tag"

    form: Form | None = None

    def __post_init__(self) -> None:
        if isinstance(self.form, Mapping):  # of run.json
            object.__setattr__(self, "form", Form.of_json(self.form))

    @property
    def heads(self) -> tuple[HeadKind, ...]:  # type: ignore[override]  # the rows decide their sizes
        if self.form is None:
            return (TAGS,)
        return heads_of_fields(self.form.sizes, self.form.tags)

    @property
    def is_fitted(self) -> bool:
        return self.form is not None

    def fitted(self, learned: Sequence[Example]) -> Tag:
        if self.form:
            return self
        asked = map(labelled.asked_of, learned)
        return replace(self, form=form_of([(one.question, one.answer) for one in asked]))

    def prepared(self, examples: Sequence[Example]) -> list[Example]:
        assert self.form
        firsts = np.cumsum([0, *self.form.sizes])  # of each head's labels, the tags' last
        found = []
        for example in examples:
            asked = labelled.asked_of(example)
            places = asked.places
            classes = firsts[:-1] + self.form.classes(asked.answer)
            tags = firsts[-1] + np.array(self.form.tagged(asked.answer, asked.question, places))
            weights = np.array([begin < end for begin, end in places], np.float32)  # marks have no tag
            found.append(replace(example, weights=weights, labels=tags.astype(np.int32),
                                 document=classes.astype(np.int32), item=""))
        return found

    def options(self) -> dict[str, Any]:
        return {"form": self.form and self.form.to_json()}

    def answer(self, read: Read, p: Floats) -> Classified:
        assert self.form
        *closed, first, end = np.cumsum([0, *self.form.sizes, self.form.tags])
        fields = [p[number, begin:until] for number, (begin, until) in enumerate(pairwise([*closed, first]))]
        of_tokens = p[len(fields):, first:end]
        places = read.encoded.places
        tagged = best_tags(np.log(np.maximum(of_tokens, TINY)), read.text, places)
        answer = self.form.answer([int(field.argmax()) for field in fields], tagged, read.text, places)
        is_word = [begin < until for begin, until in places]
        of_tags = of_tokens[np.arange(len(tagged)), tagged][is_word]
        kind = np.prod([field.max() for field in fields])
        return Classified(answer, float(kind * np.prod(of_tags)), p[:0, 0], float(kind))
