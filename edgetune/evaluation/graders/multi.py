"""OpenAI's multi: several graders, and a formula of their rewards."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, ClassVar

from ...data.rewards import reward_of
from ...errors import UsageError
from .base import Grade, Grader, Means, checked_fields, read_within, register
from .formula import Formula, NoValueError, parse_formula
from .sample import Sample
from .template import GraderTemplate


@register
@dataclass(frozen=True, kw_only=True)
class Multi(Grader):
    """calculate_output is a formula of the keys of `graders`. An answer that one of them cannot grade has 0 there.

    A formula without a finite value, or beyond MAX_REWARD, is a formula_parse_error, and the reward 0.
    """

    type: ClassVar[str] = "multi"
    graders: Mapping[str, Grader]
    calculate_output: str

    def check(self) -> None:
        if not self.graders:
            raise self.wrong("graders", "is empty", 'write {"key": grader, ...}')
        for key, grader in self.graders.items():
            if grader.type == self.type:
                raise self.wrong(f"graders.{key}", "is a multi", "name its graders here")
        self.formula  # noqa: B018 - raises for one that cannot be read

    @cached_property
    def formula(self) -> Formula:
        return parse_formula(self.calculate_output, self.graders)

    def templates(self) -> list[GraderTemplate]:
        return [template for grader in self.graders.values() for template in grader.templates()]

    def check_item(self, item: Mapping[str, Any]) -> None:
        for grader in self.graders.values():
            grader.check_item(item)

    @property
    def process_bytes(self) -> int:
        return sum(grader.process_bytes for grader in self.graders.values())

    @property
    def needs_model(self) -> bool:
        return any(grader.needs_model for grader in self.graders.values())

    @property
    def compares(self) -> bool:
        return any(grader.compares for grader in self.graders.values())

    def grade(self, samples: Sequence[Sample], items: Sequence[Mapping[str, Any]]) -> list[Grade]:
        found = {key: grader.grade(samples, items) for key, grader in self.graders.items()}
        return [self._combined({key: grades[i] for key, grades in found.items()}) for i in range(len(samples))]

    def _combined(self, grades: Mapping[str, Grade]) -> Grade:
        parts = {key: grade.reward for key, grade in grades.items()}
        errors = {name: value for grade in grades.values() for name, value in grade.errors.items()}
        try:
            reward = reward_of(self.formula(parts))
        except NoValueError:
            reward = None
        if reward is None:
            return Grade(0.0, parts, {**errors, "formula_parse_error": True})
        return Grade(reward, parts, errors)

    @classmethod
    def read(cls, given: Mapping[str, Any], means: Means) -> Multi:
        values = checked_fields(cls, given)
        graders = {}
        for key, written in values.pop("graders").items():
            if isinstance(written, Mapping) and written.get("type") == cls.type:
                raise UsageError(f"graders.{key} of a multi is a multi", "name its graders in the first one")
            graders[str(key)] = read_within(written, means)
        return cls(graders=graders, **values)
