"""The grader numeric: checks a number, such as the last one of an answer that computes."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

from ...errors import DataError
from .base import OUTPUT, OneByOne, register, template
from .regex import compiled
from .sample import Sample, Ungraded

_WHOLE = r"(?:\d{1,3}(?:,\d{3})+(?!\d)|\d+)"
_NUMBER = re.compile(rf"(?:(?<![\w)])[-+])?(?:{_WHOLE}(?:\.\d+)?|\.\d+)(?:[eE][-+]?\d+)?")


@register
@dataclass(frozen=True, kw_only=True)
class Numeric(OneByOne):
    """1 where the last number of input, or the one that `pattern` finds (its first group, if it has one), is that of
    reference (the last one there), else 0.

    It may differ by `tolerance`, or by `relative_tolerance` of the reference. 1,234 is a number with thousands.
    """

    type: ClassVar[str] = "numeric"
    input: str = template(OUTPUT)
    reference: str = template()
    pattern: str = ""
    tolerance: float = 0.0
    relative_tolerance: float = 0.0

    def check(self) -> None:
        super().check()
        compiled(self, self.pattern)
        for name in ("tolerance", "relative_tolerance"):
            if getattr(self, name) < 0:
                raise self.wrong(name, f"is {getattr(self, name):g}", "give 0 or more")

    def check_item(self, item: Mapping[str, Any]) -> None:
        super().check_item(item)
        reference = self.known_before(self.reference, item)
        if reference is not None and last_number(reference) is None:
            raise DataError(f"the reference of the grader {self.name} has no number in the row", "write one there")

    def score(self, sample: Sample, item: Mapping[str, Any]) -> float:
        found = self._found(self.rendered(self.input, sample, item))
        wanted = last_number(self.rendered(self.reference, sample, item))
        if found is None or wanted is None:
            raise Ungraded("sample_parse_error")
        return float(abs(found - wanted) <= max(self.tolerance, self.relative_tolerance * abs(wanted)))

    def _found(self, text: str) -> float | None:
        if not self.pattern:
            return last_number(text)
        match = compiled(self, self.pattern).search(text)
        if match is None:
            return None
        return last_number((match[1] if match.re.groups else match[0]) or "")


def last_number(text: str) -> float | None:
    """The last finite number in a text."""
    values = [float(found.replace(",", "")) for found in _NUMBER.findall(text[-10_000:])]
    finite = [value for value in values if math.isfinite(value)]
    return finite[-1] if finite else None
