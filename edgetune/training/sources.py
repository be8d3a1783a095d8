"""The source of the examples that an objective learns from."""

from __future__ import annotations

from pkgutil import resolve_name

from ..objectives.base import Objective
from .source import Source

KINDS = {"rows": "source:Rows", "answers": "answers:Answers", "on-policy": "on_policy:OnPolicy",
         "taught": "taught:Taught", "labelled": "labelled:Labelled"}
"""The module of this package and the class of each, by `Objective.source`."""


def source_of(objective: Objective) -> type[Source]:
    """Its module is imported only now, as a board's memory holds all that are."""
    found: type[Source] = resolve_name(f"{__package__}.{KINDS[objective.source]}")
    return found
