"""Self-distillation on the model's own answers (SDFT, arXiv 2601.19897): the student answers the question alone, and
learns at each token of its answer what the teacher, who sees a context, expects there.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from ..data import informed
from ..data.packing import Example
from ..data.rows import RowParser
from ..options import option
from .base import register
from .drawn import Drawn
from .self_distill import SelfDistill


@register
@dataclass(frozen=True)
class Sdft(SelfDistill, Drawn):
    """The loss of self-distill over answers that the student draws. No gradient goes through the draw, nor into the
    teacher. TRL weighs tokens by how much likelier they have become since they were drawn, which is 1 in the first
    update; that is left out here.
    """

    name: ClassVar[str] = "sdft"
    rows: ClassVar[RowParser] = informed
    keeps_groups: ClassVar[bool] = False
    num_generations: int = option(1, "Answers to each prompt.", low=1, high=1024)
    teacher_model_kind: str = option("base", "The teacher's weights: base, those that training starts from, an adapter "
                                     "of --start included; live, those that learn, as they are in the step.",
                                     choices=("base", "live"))

    @property
    def keeps_start(self) -> bool:
        return self.teacher_model_kind == "base"

    def has_signal(self, example: Example) -> bool:
        return example.supervised > self.num_loss_tokens_to_skip
