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
from ..errors import UsageError
from ..options import option
from .base import Objective, Signal, register

Floats = NDArray[np.float64]
LEAST = 1e-6  # the least that a probability counts as in a ratio
RARER = 100  # times that the rest is rarer to the student at most, as a head's pass is rounded (models/choices.py)


@register
@dataclass(frozen=True)
class SelfDistill(Objective):
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
    divergence: str = option("forward", "From the teacher's distribution to the student's (forward), the other way "
                             "(reverse), or between (jsd).", choices=("forward", "reverse", "jsd"))
    distillation_alpha: float = option(0.5, "With jsd, the share of the teacher in what both are compared with.",
                                       low=0.001, high=0.999)
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
        q = _with_rest(np.exp(batch.choices_reference.astype(np.float64)))
        p = _with_rest(np.exp(logp[:, 1:].astype(np.float64)))
        p[:, -1] = np.maximum(p[:, -1], q[:, -1] / RARER)
        each, slopes = self._divergence(q, p)
        learned = np.concatenate([np.arange(part.stop - part.start) >= self.num_loss_tokens_to_skip
                                  for _, part in batch.parts()])
        clipped = learned & (self.token_clip > 0) & (each > self.token_clip)
        a = np.zeros(logp.shape, np.float32)
        a[:, 1:] = -p[:, :-1] * (slopes[:, :-1] - slopes[:, -1:])
        a[~learned | clipped] = 0
        counted = np.where(clipped, self.token_clip, each)[learned]
        agree = (q[:, :-1].argmax(1) == p[:, :-1].argmax(1))[learned]
        n = float(learned.sum())
        return Signal(a, float(counted.sum()), {"divergence": (float(each[learned].sum()), n),
                                                "clip_ratio": (float(clipped.sum()), n),
                                                "teacher_agreement": (float(agree.sum()), n)})

    def _divergence(self, q: Floats, p: Floats) -> tuple[Floats, Floats]:
        """(D of each position [S], dD/dp but for a term that all outcomes share [S, k + 1])."""
        if self.divergence == "forward":
            return (q * np.log(q / p)).sum(1), -q / p
        if self.divergence == "reverse":
            return (p * np.log(p / q)).sum(1), np.log(p / q)
        m = self.distillation_alpha * q + (1 - self.distillation_alpha) * p
        each = self.distillation_alpha * q * np.log(q / m) + (1 - self.distillation_alpha) * p * np.log(p / m)
        return each.sum(1), (1 - self.distillation_alpha) * np.log(p / m)

    def check(self) -> SelfDistill:
        super().check()
        default = type(self).distillation_alpha
        if self.divergence != "jsd" and self.distillation_alpha != default:
            raise UsageError(f"distillation-alpha is {self.distillation_alpha:g}, and the divergence "
                             f"{self.divergence} has none", "leave it out, or give --divergence jsd")
        return self


def _with_rest(probabilities: Floats) -> Floats:
    """Adds all other outcomes as one, [S, k] -> [S, k + 1]; no probability is below LEAST."""
    rest = 1 - probabilities.sum(1, keepdims=True)
    found: Floats = np.maximum(np.concatenate([probabilities, rest], axis=1), LEAST)
    return found
