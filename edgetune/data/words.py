"""The words of a text, by which texts are compared."""

from __future__ import annotations

import re


def words_of(text: str) -> list[str]:
    """Returns the words in small letters, without punctuation."""
    return re.findall(r"\w+", text.casefold())


def plain(text: str) -> str:
    """Returns a text of which case, punctuation and spaces do not count."""
    return " ".join(words_of(text))
