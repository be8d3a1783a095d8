"""Policy gradients: the probability of answers that are better than others to the same prompt is raised.

L = -(1/N) sum_i c_i sum_t [min(r_t A_i, clip(r_t, 1 - epsilon, 1 + epsilon_high) A_i) - beta kl_t]

r_t = pi(t) / pi_old(t), where pi_old is the adapter that answered: in the first update after the answers the ratio is
exactly 1, so that no log-probability has to be known before it. kl_t = u - log u - 1 with u = pi_ref(t) / pi(t) (k3 of
Schulman 2020), where pi_ref is where training started. pi is at temperature 1, also where answers are drawn at another.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray

from ..data.packing import Batch, Example
from ..options import option
from .base import Signal
from .drawn import Floats, Rewarded

Doubles = NDArray[np.float64]
LEAST_STD = 1e-4  # is added to a standard deviation before it divides


@dataclass
class Sums:
    """Sums over the answers of a batch. ratios: the number of those that may be clipped."""

    loss: float = 0.0
    kl: float = 0.0
    tokens: int = 0
    ratios: int = 0
    clipped: int = 0


@dataclass(frozen=True)
class PolicyGradient(Rewarded):
    """`Example.reward` is the advantage A_i of an answer, `Example.logp` its log p by pi_old; empty: by pi itself.
    `Example.held` is added to beta.
    """

    compares_updates: ClassVar[bool] = True
    beta: float = option(0.0, "Weight of the KL divergence to the model that training started from.", low=0.0)
    epsilon: float = option(0.2, "How far the updates with some answers may lower the probability of a token, as a "
                            "share.", low=0.0)
    epsilon_high: float = option(0.0, "The same for raising it; 0: as epsilon.", low=0.0)
    dynamic_sampling: bool = option(False, "Where all answers to a prompt have the same reward, answer another prompt "
                                    "in its place (DAPO).")

    def count(self, examples: Sequence[Example]) -> float:
        return float(len(examples))

    def share_of(self, example: Example) -> float:  # noqa: ARG002
        """c_i, the weight of the tokens of an answer."""
        return 1.0

    @property
    def needs_reference(self) -> bool:  # type: ignore[override]
        return self.beta > 0

    @property
    def needs_logp(self) -> bool:  # type: ignore[override]
        return self.beta > 0 or self.num_iterations > 1

    @property
    def redraws(self) -> bool:
        return self.dynamic_sampling

    def teaches(self, example: Example) -> bool:
        return example.supervised > 0 and example.reward != 0

    def has_signal(self, example: Example) -> bool:
        return self.teaches(example) or (example.supervised > 0 and self.beta + example.held > 0)

    def weights(self, logp: Floats, batch: Batch) -> Signal:
        sums = Sums()
        a = np.zeros(logp.size, np.float32)
        for example, part in batch.parts():
            now = logp[part].astype(np.float64)
            log_ratio = now - (example.logp if example.logp.size else now)
            value, slope = self.surrogate(log_ratio, example.reward, sums)
            if batch.reference is not None:
                u_log = batch.reference[part].astype(np.float64) - now
                kl = np.exp(u_log) - u_log - 1
                sums.kl += float(kl.sum())
                beta = self.beta + example.held
                value = value - beta * kl
                slope = slope + beta * np.expm1(u_log)
            c = self.share_of(example)
            sums.loss -= c * float(value.sum())
            sums.tokens += value.size
            a[part] = c * slope
        metrics: dict[str, tuple[float, float]] = {}
        if any(example.logp.size for example in batch.examples):
            metrics["clip_ratio/region_mean"] = sums.clipped, sums.ratios
        if batch.reference is not None:
            metrics["kl"] = sums.kl, sums.tokens
        return Signal(a, sums.loss, metrics)

    def surrogate(self, log_ratio: Doubles, advantage: float | Doubles, sums: Sums) -> tuple[Doubles, Doubles]:
        """(the clipped objective of each token of an answer, its derivative by the token's log p), both [n]."""
        ratio = np.exp(log_ratio)
        low = 1 - self.epsilon
        high = 1 + (self.epsilon_high or self.epsilon)
        clipped = np.where(np.asarray(advantage) < 0, ratio < low, ratio > high)
        sums.ratios += ratio.size
        sums.clipped += int(clipped.sum())
        value = np.minimum(ratio * advantage, np.clip(ratio, low, high) * advantage)
        return value, np.where(clipped, 0.0, ratio * advantage)


def left_out(rewards: Floats) -> Floats:
    """Subtracts from each reward the mean of the others of its group."""
    g = rewards.shape[1]
    return np.asarray(centred(rewards) * (g / (g - 1)), np.float32)


def centred(rewards: Floats) -> Floats:
    return np.asarray(rewards - rewards.mean(1, keepdims=True), np.float32)
