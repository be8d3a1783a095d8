"""Proximal policy optimization (Schulman et al. 2017) with a value head on the trunk and generalized advantages."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray

from ..data.packing import Batch, Example
from ..options import option
from .base import Signal, register
from .policy import Doubles, Policy, Sums
from .rewarded import Floats


@register
@dataclass(frozen=True)
class Ppo(Policy):
    """L = (1/N) sum over N tokens: -min(r_t A_t, clip(r_t) A_t) + vf_coef/2 max((V_t - R_t)^2, (clip(V_t) - R_t)^2).

    A token's reward is -kl_coef (log pi_old - log pi_ref), the last one's the answer's besides. A_t are generalized
    advantages by the values that were estimated when the answer was first learned from (Schulman et al. 2016), R_t the
    same plus these values. Advantages are not whitened: a micro-batch must not change what is learned.
    """

    name: ClassVar[str] = "ppo"
    method: ClassVar[str] = "ppo"
    needs_values: ClassVar[bool] = True
    keeps_groups: ClassVar[bool] = False  # an answer is compared with none
    num_generations: int = option(1, "Answers to each prompt.", low=1, high=1024)
    num_iterations: int = option(4, "How often all answers are learned from before others are drawn.", low=1, high=100)
    kl_coef: float = option(0.05, "Weight of the KL divergence to the model that training started from, in rewards.",
                            low=0.0)
    vf_coef: float = option(0.1, "Weight of the value's loss.", low=0.0)
    cliprange_value: float = option(0.2, "How far the updates with some answers may move a value.", low=0.0)
    gamma: float = option(1.0, "How much of a reward a token earlier has.", low=0.0, high=1.0)
    lam: float = option(0.95, "Lambda of the generalized advantages: 0 trusts the values, 1 the rewards.", low=0.0,
                        high=1.0)

    def advantages(self, rewards: Floats, _repeated: NDArray[np.bool_]) -> Floats:
        return rewards  # those of tokens follow from the values

    @property
    def needs_logp(self) -> bool:  # type: ignore[override]
        return True

    @property
    def needs_reference(self) -> bool:  # type: ignore[override]
        return self.kl_coef > 0 or self.beta > 0

    def has_signal(self, example: Example) -> bool:
        return example.supervised > 0

    def count(self, examples: Sequence[Example]) -> float:
        return float(sum(example.supervised for example in examples))

    def share_of(self, _example: Example) -> float:
        return 1.0

    def weights(self, logp: Floats, batch: Batch) -> Signal:
        assert batch.values is not None
        sums = Sums()
        a = np.zeros(logp.size, np.float32)
        dvalues = np.zeros(logp.size, np.float32)
        of_values = 0.0
        for example, part in batch.parts():
            new = logp[part].astype(np.float64)
            old = example.logp.astype(np.float64) if example.logp.size else new
            before = (example.values if example.values.size else batch.values[part]).astype(np.float64)
            apart = old - batch.reference[part] if batch.reference is not None else np.zeros(new.size)
            advantages = self.generalized(self.token_rewards(example.reward, apart), before)
            value, slope = self.surrogate(new - old, advantages, sums)
            loss, dvalues[part] = self.value_loss(batch.values[part].astype(np.float64), before, advantages + before)
            if self.beta and batch.reference is not None:
                u_log = batch.reference[part] - new
                value = value - self.beta * (np.exp(u_log) - u_log - 1)
                slope = slope + self.beta * np.expm1(u_log)
            a[part] = slope
            sums.loss -= float(value.sum())
            sums.kl += float(apart.sum())
            sums.tokens += new.size
            of_values += loss
        metrics = {"loss/policy": (sums.loss, float(sums.tokens)), "loss/value": (of_values, float(sums.tokens)),
                   "clip_ratio/region_mean": (float(sums.clipped), float(sums.ratios))}
        if batch.reference is not None:
            metrics["kl"] = (sums.kl, float(sums.tokens))
        return Signal(a, sums.loss + self.vf_coef * of_values, metrics, self.vf_coef * dvalues)

    def token_rewards(self, reward: float, apart: Doubles) -> Doubles:
        """Of the tokens of an answer. apart [n]: log pi_old - log pi_ref."""
        found = -self.kl_coef * apart
        found[-1] += reward
        return found

    def generalized(self, rewards: Doubles, values: Doubles) -> Doubles:
        """A_t = sum over l of (gamma lam)^l (r_{t+l} + gamma V_{t+l+1} - V_{t+l}), with no value after the last token.
        """
        following = np.append(values[1:], 0.0)
        deltas = rewards + self.gamma * following - values
        found = np.zeros(deltas.size)
        carried = 0.0
        for t in reversed(range(deltas.size)):
            carried = deltas[t] + self.gamma * self.lam * carried
            found[t] = carried
        return found

    def value_loss(self, values: Doubles, before: Doubles, returns: Doubles) -> tuple[float, Doubles]:
        """(the sum of the clipped squared errors, halved; its derivative by each value)"""
        held = np.clip(values, before - self.cliprange_value, before + self.cliprange_value)
        free = (values - returns) ** 2
        clipped = (held - returns) ** 2
        moves = np.where(clipped > free, np.where(held == values, values - returns, 0.0), values - returns)
        return float(np.maximum(free, clipped).sum() / 2), moves
