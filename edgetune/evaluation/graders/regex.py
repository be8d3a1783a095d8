"""The grader regex: checks that a pattern is found."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

from .base import OUTPUT, Grader, OneByOne, register, template
from .sample import Sample


@register
@dataclass(frozen=True, kw_only=True)
class Regex(OneByOne):
    """1 where the pattern (Python's) is found in input; with `full`, where it is all of it. Else 0."""

    type: ClassVar[str] = "regex"
    input: str = template(OUTPUT)
    pattern: str
    full: bool = False

    def check(self) -> None:
        super().check()
        compiled(self, self.pattern)

    def score(self, sample: Sample, item: Mapping[str, Any]) -> float:
        pattern = compiled(self, self.pattern)
        text = self.rendered(self.input, sample, item)
        return float((pattern.fullmatch(text) if self.full else pattern.search(text)) is not None)


def compiled(grader: Grader, pattern: str) -> re.Pattern[str]:
    """The compiled pattern. Raises UsageError for an invalid one."""
    try:
        return re.compile(pattern)
    except (re.error, RecursionError, OverflowError) as error:
        raise grader.wrong("pattern", f"is no regular expression ({error})", "write one of Python's re") from None
