"""Whether the probabilities of a model that answers typed questions by letters hold: the facts of its adapter.

Each question is asked in both orders of its options, and an option's probability is the mean of the two, so that a
letter that the model prefers decides less. What an adapter did not learn is not tuned: its probabilities are those of a
model that never saw such a question, and nothing is known of them.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from ..adapters.base import Artifact
from ..errors import FormatError
from .calibration import TINY, Calibration, cooled
from .labels import relative

NAME = "letters"  # among an adapter's facts
Doubles = NDArray[np.float64]


def both_orders(forwards: ArrayLike, backwards: ArrayLike) -> Doubles:
    """The probabilities [k] of options by log p of their letters [k] in their order, and in the opposite one."""
    return (np.array(relative(forwards)) + relative(backwards)[::-1]) / 2


NOT_MEASURED = Calibration(0)


@dataclass(frozen=True)
class Lettered:
    """What an adapter learned. questions: their instructions; known: its calibration, by held-out rows."""

    questions: frozenset[str] = frozenset()
    known: Calibration = NOT_MEASURED

    def is_sure(self, p: Doubles, share: float) -> bool:
        """Whether the likeliest of probabilities [k] is sure for a share."""
        sureness = self.known.sureness
        return bool(sureness and p.max() >= sureness.threshold(share))

    def tempered(self, p: Doubles) -> Doubles:
        """Probabilities [k] as they hold for questions like the held-out ones."""
        [found] = cooled(np.log(np.maximum(p, TINY))[None], self.known.temperature)
        return np.asarray(found)

    def to_json(self) -> dict[str, Any]:
        return {"questions": sorted(self.questions), "calibration": self.known.to_json()}

    @classmethod
    def of_json(cls, found: Mapping[str, Any]) -> Lettered:
        """The inverse of `to_json`. Raises KeyError, TypeError or ValueError for what it did not write."""
        return cls(frozenset(map(str, found["questions"])), Calibration.of_json(found["calibration"]))


UNTUNED = Lettered()


def lettered_in(found: Artifact, source: str) -> Lettered:
    """What an adapter learned; UNTUNED if it learned no such question. Raises FormatError for a damaged one. source:
    names it.
    """
    try:
        return Lettered.of_json(found.facts[NAME]) if NAME in found.facts else UNTUNED
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise FormatError(f"{source} is damaged: what it learned of letters is not readable ({error})",
                          "take an earlier adapter") from None
