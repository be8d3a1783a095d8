"""Self-distillation: the model learns, without a context, what it would say with it (Snell et al. 2022, arXiv
2209.15189; generalized divergences Agarwal et al. 2024, arXiv 2306.13649).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from ..data import privileged
from ..data.packing import Batch, Example
from ..data.rows import RowParser
from ..options import option
from .base import Signal, register
from .divergence import Divergent


@register
@dataclass(frozen=True)
class SelfDistill(Divergent):
    """L = (1/N) sum over N tokens of D(q, p): q is the teacher's distribution of the next token, which is the reference
    model's after the question with the privileged context, p the student's after the question alone.

    Of q the `distillation_topk` likeliest tokens are known, and all others are one outcome, q_r = 1 - sum_i q_i and p_r
    = 1 - sum_i p_i. D is KL(q || p) (forward), KL(p || q) (reverse), or alpha KL(q || m) + (1 - alpha) KL(p || m) with
    m = alpha q + (1 - alpha) p (jsd). a_i = -p_i (dD/dp_i - dD/dp_r); the target itself has no weight.
    """

    name: ClassVar[str] = "self-distill"
    method: ClassVar[str] = "self_distill"
    needs_logp: ClassVar[bool] = True
    needs_reference: ClassVar[bool] = True
    rows: ClassVar[RowParser] = privileged
    defaults: ClassVar[Mapping[str, Any]] = {"lr": 1e-3}
    distillation_topk: int = option(16, "The teacher's likeliest tokens that are told apart; all others are one.",
                                    low=1, high=256)
    num_loss_tokens_to_skip: int = option(0, "The first tokens of an answer, of which nothing is learned.", low=0)
    token_clip: float = option(0.0, "A token whose divergence is above this teaches nothing; 0: no limit.", low=0.0)

    @property
    def needs_top(self) -> int:  # type: ignore[override]
        return self.distillation_topk

    def count(self, examples: Sequence[Example]) -> float:
        return float(sum(max(example.supervised - self.num_loss_tokens_to_skip, 0) for example in examples))

    def weights(self, logp: NDArray[np.float32], batch: Batch) -> Signal:
        assert batch.choices_reference is not None
        each, slopes, same = self.distance.learned(batch.choices_reference, logp[:, 1:])
        learned = np.concatenate([np.arange(part.stop - part.start) >= self.num_loss_tokens_to_skip
                                  for _, part in batch.parts()])
        clipped = learned & (self.token_clip > 0) & (each > self.token_clip)
        a = np.zeros(logp.shape, np.float32)
        a[:, 1:] = slopes
        a[~learned | clipped] = 0
        counted = np.where(clipped, self.token_clip, each)[learned]
        agree = same[learned]
        n = float(learned.sum())
        return Signal(a, float(counted.sum()), {"divergence": (float(each[learned].sum()), n),
                                                "clip_ratio": (float(clipped.sum()), n),
                                                "teacher_agreement": (float(agree.sum()), n)})
