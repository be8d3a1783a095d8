"""The grader json_schema: checks that an answer is JSON of a schema."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any, ClassVar

from .base import OUTPUT, OneByOne, needing, register, template
from .sample import Sample, Ungraded, json_of


@register
@dataclass(frozen=True, kw_only=True)
class JsonSchemaGrader(OneByOne):
    """1 where input is JSON that the schema allows, as jsonschema validates it (by $schema, else draft 2020-12), else
    0. A $ref leads within the schema alone: nothing is fetched.
    """

    type: ClassVar[str] = "json_schema"
    input: str = template(OUTPUT)
    schema: Mapping[str, Any]

    def check(self) -> None:
        super().check()
        self._validator  # noqa: B018 - raises for what is no schema

    @cached_property
    def _validator(self) -> Any:
        with needing(self.type):
            from jsonschema.exceptions import SchemaError
            from jsonschema.validators import Draft202012Validator, validator_for
            from referencing import Registry
        kind = validator_for(self.schema, default=Draft202012Validator)
        try:
            kind.check_schema(self.schema)
        except SchemaError as error:
            raise self.wrong("schema", f"is no JSON schema ({error.message[:200]})", "mend it") from None
        return kind(self.schema, registry=Registry())

    def score(self, sample: Sample, item: Mapping[str, Any]) -> float:
        from referencing.exceptions import Unresolvable
        value = json_of(self.rendered(self.input, sample, item))
        try:
            return float(self._validator.is_valid(value))
        except Unresolvable:
            raise Ungraded("other_error") from None
