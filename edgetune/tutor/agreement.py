"""What several answers to a question agree on."""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import dataclass

from ..evaluation.graders.agreement import form_of


@dataclass(frozen=True)
class Majority:
    """The answer that most give, by what it says: the first of them, and their share. places: where they are."""

    text: str
    share: float
    places: tuple[int, ...]


def majority(texts: Sequence[str], among: Sequence[int] | None = None) -> Majority | None:
    """Of the answers at some places (None: all); None where there is none. share: of those. Ties: the first one."""
    places = range(len(texts)) if among is None else among
    found: dict[Hashable, list[int]] = {}
    for place in places:
        if (form := form_of(texts[place])) is not None:
            found.setdefault(form, []).append(place)
    if not found:
        return None
    most = max(found.values(), key=len)
    return Majority(texts[most[0]], len(most) / len(places), tuple(most))
