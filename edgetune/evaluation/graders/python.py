"""OpenAI's python grader: a function, run in a process that can compute and nothing else."""

from __future__ import annotations

import ast
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, ClassVar

from ...errors import UsageError
from . import confinement
from .base import NOT_WRITTEN, Grader, Means, OneByOne, register
from .sample import Sample, Ungraded, sample_dict
from .sandbox import CallFailed, GraderSandbox, SourceFailed

LONGEST_SOURCE = 256 * 1000  # bytes, as OpenAI has it
LONGEST_CALL = 120.0  # seconds
LEAST_MEMORY = 128  # MiB: Python itself needs nearly that much address space
MOST_MEMORY = 2048


@register
@dataclass(frozen=True, kw_only=True)
class PythonGrader(OneByOne):
    """A grader in Python: source defines grade(sample: dict, item: dict) -> float. It has the packages that are
    installed here; image_tag, which names OpenAI's image of packages, is kept and has no effect.

    timeout: seconds a call. memory: MiB of address space. Any failure of a call scores 0, with a
    python_grader_runtime_error. Global variables persist between calls.
    """

    type: ClassVar[str] = "python"
    source: str
    image_tag: str = ""
    timeout: float = 10.0
    memory: int = 512
    unsafe: bool = field(default=False, metadata=NOT_WRITTEN, compare=False)

    def check(self) -> None:
        size = len(self.source.encode("utf-8", "surrogatepass"))
        if size >= LONGEST_SOURCE:
            raise self.wrong("source", f"has {size} bytes, the limit is {LONGEST_SOURCE}", "write less into it")
        if not 0 < self.timeout <= LONGEST_CALL:
            raise self.wrong("timeout", f"is {self.timeout:g} s", f"choose up to {LONGEST_CALL:g}")
        if not LEAST_MEMORY <= self.memory <= MOST_MEMORY:
            raise self.wrong("memory", f"is {self.memory} MiB", f"choose from {LEAST_MEMORY} to {MOST_MEMORY}")
        try:
            tree = ast.parse(self.source)
        except (SyntaxError, ValueError, RecursionError, MemoryError) as error:
            raise self.wrong("source", f"is not Python ({error})", "mend it") from None
        if "grade" not in {name for statement in tree.body for name in _bound(statement)}:
            raise self.wrong("source", "defines no function grade", "write def grade(sample, item): ...")

    def check_item(self, item: Mapping[str, Any]) -> None:  # noqa: ARG002 (its source is what can be checked)
        """Raises UsageError for a source that fails before any call."""
        try:
            self._sandbox.start()
        except SourceFailed as error:
            raise self.wrong("source", f"fails ({error})", "mend it") from None

    def score(self, sample: Sample, item: Mapping[str, Any]) -> float:
        try:
            return self._sandbox.call(sample_dict(sample), dict(item))
        except CallFailed as error:
            raise Ungraded("python_grader_runtime_error", str(error)) from None

    @property
    def process_bytes(self) -> int:
        return self.memory << 20

    @cached_property
    def _sandbox(self) -> GraderSandbox:
        return GraderSandbox(self.source, self.timeout, self.memory << 20, self.unsafe)

    @classmethod
    def read(cls, given: Mapping[str, Any], means: Means) -> Grader:
        if not means.allow_python:
            raise UsageError("a python grader is not allowed here",
                             "write it as a multi of the other graders; a daemon takes it with --allow-python-graders")
        lacking = confinement.lacks()
        if lacking and not means.allow_unsafe_python:
            raise UsageError(f"a python grader needs a sandbox, and {lacking}",
                             "run it without one with --unsafe-python, if you trust it")
        return super().read(given, means)

    @classmethod
    def beside(cls, means: Means) -> dict[str, Any]:
        return {"unsafe": means.allow_unsafe_python and bool(confinement.lacks())}


def _bound(statement: ast.stmt) -> set[str]:
    """Names that a statement of a module binds."""
    if isinstance(statement, ast.FunctionDef | ast.ClassDef):
        return {statement.name}
    return {node.id for node in ast.walk(statement) if isinstance(node, ast.Name)} | {
        alias.asname or alias.name for node in ast.walk(statement) if isinstance(node, ast.Import | ast.ImportFrom)
        for alias in node.names}
