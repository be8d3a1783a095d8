"""The heads that an objective may request of a network: its outputs at each supervised position."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace


@dataclass(frozen=True)
class HeadKind:
    """A kind of head. size: the number of its outputs, if the objective decides it, such as the number of classes.
    label: tells heads of one kind apart. Where a network has several heads of classes or tags, the labels of the first
    are 0 to its size - 1, those of the second follow, and so on: so a label says which head a position is for.
    """

    name: str
    size: int = 0
    label: str = ""

    @property
    def parameters(self) -> str:
        """The name of its parameters."""
        return f"{self.name}.{self.label}" if self.label else self.name


VOCABULARY = HeadKind("vocabulary")
"""log p of the token that follows; a part of every language model."""
CLASSES = HeadKind("classes")
"""log p of the classes of a document, by a soft-max over as many outputs as the objective has labels."""
MULTILABEL = HeadKind("multilabel")
"""A linear function of the vector of a document, an output for each label, [k] in place of log p. A label is there by
the sigmoid of its output.
"""
VALUE = HeadKind("value")
"""An estimate of the rewards that are to come. It begins at 0, is trained, and is no part of the adapter."""
VECTOR = HeadKind("vector")
"""The vector of the document that a position is in, of length 1, float32 [D], in place of log p. It has no parameters.
"""
TAGS = HeadKind("tags")
"""log p of the classes of a token, by a soft-max over a linear function of its hidden state."""


def heads_of_fields(closed: Sequence[int], tags: int) -> tuple[HeadKind, ...]:
    """The heads of answers with fields: one for each closed field, by its number of values, then one for tags."""
    return (*(replace(CLASSES, size=size, label=str(number)) for number, size in enumerate(closed)),
            replace(TAGS, size=tags))
