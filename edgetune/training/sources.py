"""The source of the examples that an objective learns from."""

from __future__ import annotations

from ..objectives.base import Objective
from ..objectives.distill import Distill
from ..objectives.drawn import Drawn
from ..objectives.gkd import Gkd
from ..objectives.labelling import Labelling
from .answers import Answers
from .labelled import Labelled
from .on_policy import OnPolicy
from .source import Rows, Source
from .taught import Taught

KINDS: tuple[tuple[type[Objective], type[Source]], ...] = (
    (Gkd, OnPolicy), (Drawn, Answers), (Distill, Taught), (Labelling, Labelled))


def source_of(objective: Objective) -> type[Source]:
    return next((source for kind, source in KINDS if isinstance(objective, kind)), Rows)
