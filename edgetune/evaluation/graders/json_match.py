"""json_match: the share of the fields of a JSON that are right."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

from ...errors import DataError
from ..judge import NOT_JSON, equal, parse_json
from .base import OUTPUT, OneByOne, register, template
from .sample import Sample, json_of

Path = tuple[str | int, ...]


@register
@dataclass(frozen=True, kw_only=True)
class JsonMatch(OneByOne):
    """The share of all fields of input or reference that both have, with equal values.

    A field is a value at its path: no object and no list, or an empty one. An extra field costs as much as a missing
    one, so listing everything does not score. Values are compared as by `judge.same`: 1 is 1.0, but not true.
    """

    type: ClassVar[str] = "json_match"
    input: str = template(OUTPUT)
    reference: str = template()

    def check_item(self, item: Mapping[str, Any]) -> None:
        super().check_item(item)
        reference = self.known_before(self.reference, item)
        if reference is not None and parse_json(reference) is NOT_JSON:
            raise DataError(f"the reference of the grader {self.name} is no JSON in the row", "write JSON there")

    def score(self, sample: Sample, item: Mapping[str, Any]) -> float:
        given = dict(leaves(json_of(self.rendered(self.input, sample, item))))
        wanted = dict(leaves(json_of(self.rendered(self.reference, sample, item))))
        right = sum(path in given and equal(value, given[path]) for path, value in wanted.items())
        return right / len(given.keys() | wanted.keys())


def leaves(value: Any, path: Path = ()) -> Iterator[tuple[Path, Any]]:
    """The fields of a value of JSON, by their path."""
    inner = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    if not inner or not value:
        yield path, value
        return
    for key, part in inner:
        yield from leaves(part, (*path, key))
