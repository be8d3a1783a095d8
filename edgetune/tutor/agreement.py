"""What several answers to a question agree on."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from ..evaluation.judge import NOT_JSON, parse_json


@dataclass(frozen=True)
class Majority:
    """The answer that most give, by what it says: the first of them, and their share. places: where they are."""

    text: str
    share: float
    places: tuple[int, ...]


def said_by(text: str) -> str:
    """Equal for answers that say the same: JSON as JSON, whatever its spacing, order of keys and notation of numbers;
    other text without regard to case, space and a full stop at its end.
    """
    value = parse_json(text)
    if value is not NOT_JSON:
        return json.dumps(_plain(value), sort_keys=True, ensure_ascii=False)
    return " ".join(text.casefold().split()).removesuffix(".")


def majority(texts: Sequence[str], among: Sequence[int] | None = None) -> Majority | None:
    """Of the answers at some places (None: all); None where there is none. share: of those. Ties: the first one."""
    places = range(len(texts)) if among is None else among
    found: dict[str, list[int]] = {}
    for place in places:
        if texts[place].strip():
            found.setdefault(said_by(texts[place]), []).append(place)
    if not found:
        return None
    most = max(found.values(), key=len)
    return Majority(texts[most[0]], len(most) / len(places), tuple(most))


def _plain(value: Any) -> Any:
    """JSON in which numbers that are equal are written alike."""
    if isinstance(value, dict):
        return {key: _plain(inner) for key, inner in value.items()}
    if isinstance(value, list):
        return [_plain(inner) for inner in value]
    return float(value) if isinstance(value, int) and not isinstance(value, bool) else value
