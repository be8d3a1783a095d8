"""The grader agreement: an answer passes if it is that of the majority for its row; no right answer is needed
(self-consistency, Wang et al. 2022, arXiv 2203.11171; as a reward Zuo et al. 2025, arXiv 2504.16084).
"""

from __future__ import annotations

import json
from collections import Counter, defaultdict
from collections.abc import Hashable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

from ..judge import NOT_JSON, parse_json
from .base import OUTPUT, Grade, Grader, register, template
from .numeric import last_number
from .regex import compiled
from .sample import Sample, Ungraded


@register
@dataclass(frozen=True, kw_only=True)
class AgreementGrader(Grader):
    """The share of the answers to a row that are equal, where it is `threshold` at least; 0 for all other answers.

    Answers are equal where their `input` is equal as JSON, as numbers (1,234 is 1234.0) or as text without white space
    around it. `pattern` finds the part that is compared (its first group, if it has one). An answer that is empty, was
    cut or lacks the part agrees with no other, but counts. If two are equally frequent, neither has the majority.
    """

    type: ClassVar[str] = "agreement"
    input: str = template(OUTPUT)
    threshold: float = 0.75
    pattern: str = ""

    def check(self) -> None:
        super().check()
        compiled(self, self.pattern)
        if not 0 < self.threshold <= 1:
            raise self.wrong("threshold", f"is {self.threshold:g}", "give a share above 0, at most 1")

    @property
    def passes_at(self) -> float:
        return self.threshold

    @property
    def compares(self) -> bool:
        return True

    def grade(self, samples: Sequence[Sample], items: Sequence[Mapping[str, Any]]) -> list[Grade]:
        groups: dict[str, list[int]] = defaultdict(list)
        for i, item in enumerate(items):
            groups[json.dumps(item, sort_keys=True)].append(i)
        grades = [Grade(0.0)] * len(samples)
        for members in groups.values():
            if len(members) == 1:
                grades[members[0]] = Grade(0.0, errors={"other_error": "there is no other answer to agree with"})
                continue
            said = [self._said(samples[i], items[i]) for i in members]
            form, share = majority(said)
            for i, own in zip(members, said, strict=True):
                if own is not None and own == form and share >= self.threshold:
                    grades[i] = Grade(share)
        return grades

    def _said(self, sample: Sample, item: Mapping[str, Any]) -> Hashable:
        """The form of an answer, which is equal for equal answers; None for an empty one, or one without the part."""
        try:
            text = self.rendered(self.input, sample, item)
        except Ungraded:
            return None
        if self.pattern:
            match = compiled(self, self.pattern).search(text)
            text = (match[1] if match.re.groups else match[0]) or "" if match else ""
        return None if sample.finish_reason == "length" else form_of(text)


def majority(said: Sequence[Hashable]) -> tuple[Hashable, float]:
    """(the most frequent form, its share of all); (None, 0) where all are empty, or two are equally frequent."""
    counts = Counter(form for form in said if form is not None).most_common(2)
    if not counts or (len(counts) == 2 and counts[0][1] == counts[1][1]):
        return None, 0.0
    return counts[0][0], counts[0][1] / len(said)


def form_of(text: str) -> Hashable:
    """A value equal for equal texts: JSON, numbers, stripped text. None without a visible character."""
    text = text.strip()
    if not text:
        return None
    value = parse_json(text)
    if value is not NOT_JSON:
        return _frozen(value)
    number = last_number(text)
    is_number = number is not None and text.replace(",", "").lstrip("+-").replace(".", "", 1).isdecimal()
    return _frozen(number) if is_number else ("text", text)


def parts_of(text: str) -> frozenset[Hashable]:
    """The parts of a text: for JSON each value with its path, without positions in lists; for other text the whole.
    Empty for text without a visible character. Parts are compared as forms are.
    """
    value = parse_json(text.strip())
    if value is NOT_JSON or not isinstance(value, dict | list):
        form = form_of(text)
        return frozenset() if form is None else frozenset([form])
    return frozenset(_leaves(value, ()))


def _leaves(value: Any, path: tuple[str | None, ...]) -> Iterator[Hashable]:
    """Each value in a value of JSON that holds no other, with its path."""
    if isinstance(value, dict) and value:
        for key, part in value.items():
            yield from _leaves(part, (*path, key))
    elif isinstance(value, list) and value:
        for part in value:
            yield from _leaves(part, (*path, None))
    else:
        yield path, _frozen(value)


def _frozen(value: Any) -> Hashable:
    """A value of JSON that can be compared and hashed: 1 is 1.0, and neither is true."""
    if isinstance(value, dict):
        return "object", frozenset((key, _frozen(part)) for key, part in value.items())
    if isinstance(value, list):
        return "list", tuple(map(_frozen, value))
    kind = "number" if isinstance(value, int | float) and not isinstance(value, bool) else type(value).__name__
    return kind, value
