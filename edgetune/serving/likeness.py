"""Whether a question is like those that an encoder learned: by its vector, which training did not change.

The likeness of a question is its cosine to the nearest label, which is the mean of the vectors of its questions. With
several fields of few values it is the mean over fields. neighbours.py says from which likeness on it is like them.
"""

from __future__ import annotations

from base64 import b64decode, b64encode
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..adapters.base import Artifact
from ..errors import FormatError
from .neighbours import Floats, Neighbours, limit_of_learned, mean_of_greatest

NAME = "likeness"  # among an adapter's facts
AT_ONCE = 64  # questions that are compared together
TINY = 1e-12  # the least length that a vector is divided by


@dataclass(frozen=True)
class Likeness:
    """labels: of each field the vectors of its labels [labels, D], of length 1. limit: the least likeness of a question
    that is like the learned ones.
    """

    labels: tuple[Neighbours, ...]
    limit: float

    @classmethod
    def of(cls, vectors: Floats, fields: Sequence[NDArray[np.int32]], others: Floats) -> Likeness:
        """vectors [n, D]: of learned questions, of length 1. fields: the label [n] of each, by every field; without
        any, all have one. others [m, D]: of questions that were not learned; without any, each learned one is compared
        with the rest.
        """
        fields = fields or [np.zeros(len(vectors), np.int32)]
        sums = [np.zeros((own.max() + 1, vectors.shape[1]), np.float32) for own in fields]
        for total, own in zip(sums, fields, strict=True):
            np.add.at(total, own, vectors)
        labels = tuple(Neighbours(_normed(total)) for total in sums)
        if len(others):
            found = _nearest(others, labels)
        else:
            found = np.concatenate([_nearest_of_the_rest(vectors[part], labels, sums, [own[part] for own in fields])
                                    for part in _blocks(vectors)])
        return cls(labels, limit_of_learned(found))

    def likeness(self, vectors: Floats) -> Floats:
        """The likeness [n] of questions with these vectors [n, D]."""
        return _nearest(vectors, self.labels)

    def to_json(self) -> dict[str, Any]:
        return {"limit": self.limit, "width": self.labels[0].vectors.shape[1],
                "labels": [b64encode(each.vectors.astype("<f2").tobytes()).decode() for each in self.labels]}

    @classmethod
    def of_json(cls, found: Mapping[str, Any]) -> Likeness:
        """The inverse of `to_json`. Raises KeyError, TypeError or ValueError for what it did not write."""
        labels = tuple(np.frombuffer(b64decode(each, validate=True), "<f2").reshape(-1, found["width"])
                       for each in found["labels"])
        if not labels or not all(len(each) and np.isfinite(each).all() for each in labels):
            raise ValueError("no vectors")
        return cls(tuple(Neighbours(each.astype(np.float32)) for each in labels), float(found["limit"]))


def likeness_of(found: Artifact, source: str) -> Likeness | None:
    """Which questions are like those of an adapter. Raises FormatError for a damaged one. source: names it."""
    try:
        return Likeness.of_json(written) if (written := found.facts.get(NAME)) else None
    except (KeyError, TypeError, ValueError) as error:
        raise FormatError(f"{source} is damaged: its likeness is not readable ({error})",
                          "take an earlier adapter") from None


def _normed(vectors: Floats) -> Floats:
    lengths = np.linalg.norm(vectors, axis=1, keepdims=True)
    found: Floats = vectors / np.maximum(lengths, np.float32(TINY))
    return found


def _blocks(vectors: Floats) -> Iterator[slice]:
    return (slice(begin, begin + AT_ONCE) for begin in range(0, len(vectors), AT_ONCE))


def _nearest(vectors: Floats, labels: Sequence[Neighbours]) -> Floats:
    """The likeness [n] to the labels of every field."""
    found = [_of_fields([each.likeness(vectors[part]) for each in labels]) for part in _blocks(vectors)]
    return np.concatenate([np.empty(0, np.float32), *found])


def _nearest_of_the_rest(vectors: Floats, labels: Sequence[Neighbours], sums: Sequence[Floats],
                         fields: Sequence[NDArray[np.int32]]) -> Floats:
    """The same of learned questions, each without its own part in its labels, which are the sums, normed."""
    cosines = [each.likeness(vectors) for each in labels]
    for cosine, total, own in zip(cosines, sums, fields, strict=True):
        cosine[np.arange(len(own)), own] = (vectors * _normed(total[own] - vectors)).sum(1)
    return _of_fields(cosines)


def _of_fields(cosines: Sequence[Floats]) -> Floats:
    """The likeness [n] by the cosines [n, labels] of every field: the mean of those to the nearest labels."""
    found: Floats = np.mean([mean_of_greatest(each, 1) for each in cosines], axis=0)
    return found
