"""The heads that an objective may request of a network: its outputs at each supervised position."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class HeadKind:
    """A kind of head. size: the number of its outputs, if the objective decides it, such as the number of classes."""

    name: str
    size: int = 0


VOCABULARY = HeadKind("vocabulary")
"""log p of the token that follows; a part of every language model."""
VALUE = HeadKind("value")
"""An estimate of the rewards that are to come. It begins at 0, is trained, and is no part of the adapter."""
