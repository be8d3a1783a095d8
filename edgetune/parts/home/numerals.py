"""Numbers in words."""

from __future__ import annotations

from functools import cache
from typing import Any

SOFT_HYPHEN = "\u00ad"  # stands between the parts of German numbers


@cache
def _engine(language: str) -> Any:
    from unicode_rbnf import RbnfEngine  # and not through hassil, which takes memory of a daemon
    try:
        return RbnfEngine.for_language(language)
    except ValueError:
        return None


def spelled(number: int, language: str) -> str:
    """A number in words; in digits where the language has no rules for words."""
    engine = _engine(language)
    if engine is None:
        return str(number)
    return str(engine.format_number(number).text).replace(SOFT_HYPHEN, "").replace("-", " ")
