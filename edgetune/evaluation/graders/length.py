"""The grader length: checks that the length of an answer is within limits."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

from .base import OUTPUT, OneByOne, register, template
from .sample import Sample


@register
@dataclass(frozen=True, kw_only=True)
class Length(OneByOne):
    """1 from min to max words, or characters. Below it falls linearly to 0 at nothing, above to 0 at twice the max."""

    type: ClassVar[str] = "length"
    input: str = template(OUTPUT)
    min: int = 0
    max: int | None = None
    unit: Literal["words", "characters"] = "words"

    def check(self) -> None:
        super().check()
        if self.min < 0:
            raise self.wrong("min", f"is {self.min}", "give 0 or more")
        if self.max is None and self.min == 0:
            raise self.wrong("max", "is not given, nor is min", "give one of them, or both")
        if self.max is not None and self.max < max(self.min, 1):
            raise self.wrong("max", f"is {self.max}", f"give {max(self.min, 1)} or more")

    def score(self, sample: Sample, item: Mapping[str, Any]) -> float:
        text = self.rendered(self.input, sample, item)
        count = len(text.split() if self.unit == "words" else text)
        if count < self.min:
            return count / self.min
        if self.max is None or count <= self.max:
            return 1.0
        return max(0.0, 1 - (count - self.max) / self.max)
