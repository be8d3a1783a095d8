"""Distillation on the student's own answers (GKD, arXiv 2306.13649): the student answers the rows' prompts, and learns
at each token of its answer what a teacher expects there, who is a model on this device.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from ..data import prompts
from ..data.packing import Batch, Example
from ..data.rows import RowParser
from ..errors import UsageError
from ..options import option
from .base import Signal, register
from .divergence import Divergent
from .drawn import Drawn


@register
@dataclass(frozen=True)
class Gkd(Divergent, Drawn):
    """L = (1/N) sum_t D(q_t, p_t) over the N tokens of a step's answers: q is the teacher's distribution, p the
    student's. A share of the steps, which the seed chooses, learns from answers that the student draws; the others from
    those of the rows. No gradient goes through the draw. D: as of the method distill.
    """

    name: ClassVar[str] = "gkd"
    needs_logp: ClassVar[bool] = True
    needs_reference: ClassVar[bool] = True
    needs_files: ClassVar[bool] = True
    keeps_groups: ClassVar[bool] = False
    rows: ClassVar[RowParser] = prompts
    source: ClassVar[str] = "on-policy"
    defaults: ClassVar[Mapping[str, Any]] = {"lr": 1e-3}
    num_generations: int = option(1, "Answers to each prompt.", low=1, high=1024)
    teacher_model: str = option("", "The teacher, a GGUF or a bundle with the student's tokenizer.", local=True)
    student_share: float = option(0.5, "The share of the steps that learn from the student's own answers.", low=0.0,
                                  high=1.0, share=True)
    distillation_topk: int = option(32, "The teacher's likeliest tokens that are told apart; all others are one.",
                                    low=1, high=256)

    @property
    def needs_top(self) -> int:  # type: ignore[override]
        return self.distillation_topk

    @property
    def keeps_start(self) -> bool:
        return False

    @property
    def file(self) -> Path:
        """The teacher's. Raises UsageError where none is named."""
        if not self.teacher_model:
            raise UsageError("the method gkd needs a teacher on this device",
                             "name a model with --teacher-model, or use --method distill with a teacher's file")
        return Path(self.teacher_model)

    def is_drawn(self, step: int, seed: int) -> bool:
        """Whether the answers of a step are the student's."""
        return bool(np.random.Generator(np.random.PCG64([seed, step])).random() < self.student_share)

    def has_signal(self, example: Example) -> bool:
        return example.supervised > 0

    def count(self, examples: Sequence[Example]) -> float:
        return float(sum(example.supervised for example in examples))

    def weights(self, logp: NDArray[np.float32], batch: Batch) -> Signal:
        assert batch.choices_reference is not None
        each, slopes, same = self.distance.learned(batch.choices_reference, logp[:, 1:])
        a = np.zeros(logp.shape, np.float32)
        a[:, 1:] = slopes
        loss = float(each.sum())
        return Signal(a, loss, {"divergence": (loss, float(each.size)),
                                "teacher_agreement": (float(same.sum()), float(each.size))})

    def check(self) -> Gkd:
        super().check()
        is_path = bool(self.teacher_model) and Path(self.teacher_model).exists()  # else it is the name of a model
        return replace(self, teacher_model=str(Path(self.teacher_model).absolute())) if is_path else self
