"""Templates of graders: text with `{{ item.question }}` or `{{ sample.output_json.calls[0].name }}` in it.

Only paths are allowed; nothing is computed. A value that is not text is written as JSON.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

from ...errors import DataError, UsageError
from .sample import Sample, Ungraded, choices_of, output_json

ROOTS = ("item", "sample")
OF_SAMPLE = ("output_text", "output_json", "output_tools", "choices")
HINT = "write {{ item.column }}, {{ sample.output_text }}, {{ sample.output_json.key[0] }} and the like"
LONGEST = 1 << 18  # characters of a template
_STEP = re.compile(r"""\.\s*([\w-]+)|\[\s*(?:(-?\d{1,9})|"([^"]*)"|'([^']*)')\s*\]""")
_ROOT = re.compile(r"\s*(\w+)")
_MISSING = object()


@dataclass(frozen=True)
class Variable:
    """A path: a root, and the keys and numbers that lead from there."""

    root: str
    steps: tuple[str | int, ...]

    def __str__(self) -> str:
        return self.root + "".join(f"[{step}]" if isinstance(step, int) else f".{step}" for step in self.steps)


@dataclass(frozen=True)
class GraderTemplate:
    """Texts and variables in turn."""

    parts: tuple[str | Variable, ...]

    def variables(self, root: str) -> Iterator[Variable]:
        return (part for part in self.parts if isinstance(part, Variable) and part.root == root)

    def check(self, item: Mapping[str, Any]) -> None:
        """Raises DataError for the first variable that a row lacks."""
        for variable in self.variables("item"):
            if _follow(item, variable.steps) is _MISSING:
                keys = ", ".join(str(key) for key in list(item)[:8])
                raise DataError(f"the row has no {variable}, which the grader names",
                                f"its columns are {keys or 'none'}")

    def render(self, sample: Sample, item: Mapping[str, Any]) -> str:
        """The text with its variables filled in. Raises Ungraded: sample_parse_error where output_json is named and the
        answer is no JSON, invalid_variable_error where a variable has no value.
        """
        return "".join(part if isinstance(part, str) else _text(_value(part, sample, item)) for part in self.parts)


@lru_cache(maxsize=256)
def parse_template(text: str, where: str) -> GraderTemplate:
    """Parses a template. where: for the error. Raises UsageError for a path outside item and sample."""
    if len(text) > LONGEST:
        raise UsageError(f"{where} has {len(text)} characters, the limit is {LONGEST}", "write less into it")
    parts: list[str | Variable] = []
    first, *rest = text.split("{{")
    if first:
        parts.append(first)
    for piece in rest:
        inner, closed, after = piece.partition("}}")
        if not closed:
            raise UsageError(f"{where} has {{{{ without }}}}", HINT)
        parts.append(_variable(inner, where))
        if after:
            parts.append(after)
    return GraderTemplate(tuple(parts))


def _variable(inner: str, where: str) -> Variable:
    found = _ROOT.match(inner)
    root = found[1] if found else ""
    steps: list[str | int] = []
    at = found.end() if found else 0
    while step := _STEP.match(inner, at):
        name, number, *quoted = step.groups()
        steps.append(int(number) if number is not None else next(key for key in (name, *quoted) if key is not None))
        at = step.end()
    if not found or inner[at:].strip():
        raise UsageError(f"{where} has {{{{{inner[:80]}}}}}, which is no path", HINT)
    if root not in ROOTS:
        raise UsageError(f"{where} names {root!r:.80}, variables are of item and of sample", HINT)
    if root == "sample" and (not steps or steps[0] not in OF_SAMPLE):
        raise UsageError(f"{where} names {Variable(root, tuple(steps))!s:.80}",
                         f"of sample there are {', '.join(OF_SAMPLE)}")
    return Variable(root, tuple(steps))


def _value(variable: Variable, sample: Sample, item: Mapping[str, Any]) -> Any:
    value: Any = item
    steps = variable.steps
    if variable.root == "sample":
        value = _of_sample(str(steps[0]), sample)
        steps = steps[1:]
    value = _follow(value, steps)
    if value is _MISSING:
        raise Ungraded("invalid_variable_error")
    return value


def _of_sample(name: str, sample: Sample) -> Any:
    if name == "output_json":
        return output_json(sample)
    if name == "output_tools":
        return list(sample.tool_calls)
    return choices_of(sample) if name == "choices" else sample.text


def _follow(value: Any, steps: tuple[str | int, ...]) -> Any:
    """The value at a path, or _MISSING."""
    for step in steps:
        if isinstance(step, int):
            is_there = isinstance(value, list | tuple) and -len(value) <= step < len(value)
        else:
            is_there = isinstance(value, Mapping) and step in value
        if not is_there:
            return _MISSING
        value = value[step]
    return value


def _text(value: Any) -> str:
    if isinstance(value, str):
        return value
    try:
        return json.dumps(value, ensure_ascii=False)
    except (TypeError, ValueError, RecursionError):
        raise Ungraded("invalid_variable_error") from None
