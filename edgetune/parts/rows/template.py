"""Templates with slots: `{name}` is replaced, and `[one|other]` is one of its wordings, of which one may be empty.

Other braces and brackets stay as they are, so that a template may hold JSON.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

SLOT = re.compile(r"\{(\w+)\}")
CHOICE = re.compile(r"\[([^\[\]{}\"]*\|[^\[\]{}\"]*)\]")
SPACES = re.compile(r"[ \t]{2,}")


@dataclass(frozen=True)
class Template:
    """A text with slots and wordings."""

    text: str

    @property
    def slots(self) -> tuple[str, ...]:
        """The names of the slots, each once, in their order."""
        return tuple(dict.fromkeys(SLOT.findall(self.text)))

    @property
    def choices(self) -> list[list[str]]:
        """The wordings of each choice, in their order."""
        return [found.split("|") for found in CHOICE.findall(self.text)]

    def worded(self, chosen: Iterator[int]) -> str:
        """The text with a wording for each choice. chosen: their indices."""
        text = CHOICE.sub(lambda found: found[1].split("|")[next(chosen)], self.text)
        return SPACES.sub(" ", text).strip() if text != self.text else text


def filled(text: str, values: Mapping[str, Any]) -> str:
    """A text with each slot that `values` has replaced, once: a value with braces stays as it is."""
    return SLOT.sub(lambda found: str(values[found[1]]) if found[1] in values else found[0], text)
