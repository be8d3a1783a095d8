"""Whether a value stands in a text."""

from __future__ import annotations

import re


def normal(text: str) -> str:
    """Drops the differences of case and white space."""
    return " ".join(text.casefold().split())


def stands_in(source: str, value: str | float) -> bool:
    """Whether a value stands in a normal text, on the boundaries of words; a number in one of its notations."""
    if isinstance(value, str):
        words = normal(value)
        return bool(words) and re.search(rf"(?<!\w){re.escape(words)}(?!\w)", source) is not None
    notations = {str(value)}
    if isinstance(value, float) and value.is_integer():
        notations.add(str(int(value)))
    return any(re.search(rf"(?<![\w.]){re.escape(text)}(?![\w]|[.,]\d)", source) for text in notations)
