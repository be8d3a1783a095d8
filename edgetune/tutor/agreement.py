"""What several answers to a question agree on.

Of JSON it is not only asked whether answers are the same: most have an intent right before they have every slot right.
So the answer is taken that has most in common with all of them, which is that of least risk where they are draws of
what is true (minimum Bayes risk decoding, Kumar and Byrne 2004; of language models' answers Bertsch et al. 2023, arXiv
2310.01387).
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import dataclass

from ..evaluation.graders.agreement import form_of, parts_of


@dataclass(frozen=True)
class Consensus:
    """The answer that has most in common with all. share: of parts in common with an answer, mean over all of them,
    itself too; for answers that are no JSON the share that says the same. places: of those that say the same.
    trust: the share, where answers that may not count have nothing in common.
    """

    text: str
    share: float
    places: tuple[int, ...]
    trust: float


def consensus(texts: Sequence[str], among: Sequence[int] | None = None) -> Consensus | None:
    """Of the answers at some places (None: all); None where none of them says anything. Ties: the first one."""
    places = list(range(len(texts)) if among is None else among)
    parts = {place: parts_of(texts[place]) for place in places}
    shares = {place: sum(in_common(parts[place], other) for other in parts.values()) / len(places)
              for place in places if parts[place]}
    if not shares:
        return None
    best = max(shares, key=lambda place: (round(shares[place], 9), -place))
    form = form_of(texts[best])
    says_it = tuple(place for place in places if form_of(texts[place]) == form)
    return Consensus(texts[best], shares[best], says_it, shares[best] * len(places) / len(texts))


def in_common(a: frozenset[Hashable], b: frozenset[Hashable]) -> float:
    """Twice what both have, of what they have together (Dice 1945)."""
    return 2 * len(a & b) / (len(a) + len(b)) if a or b else 0.0
