"""The heads that an objective may request of a network: its outputs at each supervised position."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class HeadKind:
    """A kind of head. size: the number of its outputs, if the objective decides it, such as the number of classes.
    label: tells heads of one kind apart.
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
VALUE = HeadKind("value")
"""An estimate of the rewards that are to come. It begins at 0, is trained, and is no part of the adapter."""
VECTOR = HeadKind("vector")
"""The vector of the document that a position is in, float32 [D], in place of log p. It has no parameters."""


def classes(size: int, label: str = "") -> HeadKind:
    """log p of one of `size` classes, by a linear function of the vector of the document that a position is in."""
    return HeadKind("classes", size, label)


def tags(size: int, label: str = "") -> HeadKind:
    """log p of one of `size` classes, by a linear function of a token's hidden state.

    A network with several heads of classes or tags tells by a label which of them a position is for: the labels of the
    first head are 0 to its size - 1, those of the second follow, and so on.
    """
    return HeadKind("tags", size, label)
