"""OpenAI's string_check."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

from .base import OneByOne, register, template
from .sample import Sample


@register
@dataclass(frozen=True, kw_only=True)
class StringCheck(OneByOne):
    """The result of a comparison, 1 or 0. eq, ne: input is, or is not, exactly the reference. like: input contains the
    reference; ilike: the same, ignoring case.
    """

    type: ClassVar[str] = "string_check"
    input: str = template()
    reference: str = template()
    operation: Literal["eq", "ne", "like", "ilike"]

    def score(self, sample: Sample, item: Mapping[str, Any]) -> float:
        text = self.rendered(self.input, sample, item)
        reference = self.rendered(self.reference, sample, item)
        if self.operation == "eq":
            return float(text == reference)
        if self.operation == "ne":
            return float(text != reference)
        if self.operation == "like":
            return float(reference in text)
        return float(reference.casefold() in text.casefold())
