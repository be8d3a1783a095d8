"""Self-correction: asked to look at its answer again, the model corrects a wrong one and keeps a right one. The aim is
that of Kumar et al. 2024 (arXiv 2409.12917), who draw both answers while training; here pairs of second answers after
first answers that were drawn before are learned by direct preference optimization.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from ..data import attempts
from ..data.rows import RowParser
from .base import register
from .dpo import Dpo


@register
@dataclass(frozen=True)
class SelfCorrect(Dpo):
    """The loss of dpo, with its options, over pairs of second answers. After the question, an attempt and the request
    to look again, the right answer is preferred to a wrong attempt, and a right attempt to another, wrong one.
    """

    name: ClassVar[str] = "self-correct"
    method: ClassVar[str] = "self_correct"
    rows: ClassVar[RowParser] = attempts
