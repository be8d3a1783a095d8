"""The heads that an objective may ask a network for: what it says at each supervised position."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class HeadKind:
    """size: how many numbers it says, where the objective decides that, such as the number of classes."""

    name: str
    size: int = 0


VOCABULARY = HeadKind("vocabulary")
"""log p of the token that follows; a part of every language model."""
VALUE = HeadKind("value")
"""An estimate of the rewards that are to come. It begins at 0, is trained, and is no part of the adapter."""
