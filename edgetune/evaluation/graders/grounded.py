"""The grader grounded: the share of an answer's values that occur in the prompt."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

from ...data.answer_schema import normal, stands_in
from ...data.question import asked_text
from .base import OUTPUT, OneByOne, register, template
from .sample import Sample, json_of


@register
@dataclass(frozen=True, kw_only=True)
class Grounded(OneByOne):
    """The share of the texts and numbers in input, which is JSON, that occur in the source as whole words.

    Case is ignored. The share is 1 where input has none; combine it with a json_schema that demands some.

    source: by default the row's prompt, or its messages without the answer. ignore: keys whose values, with all
    within them, need not occur there, such as a label. Truth values and null are not looked for.
    """

    type: ClassVar[str] = "grounded"
    input: str = template(OUTPUT)
    source: str = template("")
    ignore: tuple[str, ...] = ()

    def check_item(self, item: Mapping[str, Any]) -> None:
        super().check_item(item)
        if not self.source:
            asked_text(item)

    def score(self, sample: Sample, item: Mapping[str, Any]) -> float:
        values = list(self._values(json_of(self.rendered(self.input, sample, item))))
        source = normal(self.rendered(self.source, sample, item) if self.source else asked_text(item))
        return sum(stands_in(source, value) for value in values) / len(values) if values else 1.0

    def _values(self, value: Any) -> Iterator[str | float]:
        if isinstance(value, dict):
            for key, part in value.items():
                if key not in self.ignore:
                    yield from self._values(part)
        elif isinstance(value, list):
            for part in value:
                yield from self._values(part)
        elif isinstance(value, str | int | float) and not isinstance(value, bool):
            yield value
