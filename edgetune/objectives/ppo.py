"""Proximal policy optimization (Schulman et al. 2017) with a value head on the trunk and generalized advantages."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from ..adapters.heads import VALUE, VOCABULARY, HeadKind
from ..data.packing import Batch, Example
from ..options import option
from .base import Signal, register
from .drawn import Floats
from .policy import Doubles, PolicyGradient, Sums

LEAST_VARIANCE = 1e-8  # is added to a variance before it divides


@register
@dataclass(frozen=True)
class Ppo(PolicyGradient):
    """L = (1/N) sum over N tokens: -min(r_t A_t, clip(r_t) A_t) + vf_coef/2 max((V_t - R_t)^2, (clip(V_t) - R_t)^2).

    A token's reward is -kl_coef (log pi_old - log pi_ref), the last one's the answer's besides. A_t are generalized
    advantages by the values that were estimated when the answer was first learned from (Schulman et al. 2016), R_t the
    same plus these values. Then the advantages of all tokens of the step are whitened, as TRL's and those of Huang et
    al. 2024 (arXiv 2403.17031) are, which is what makes the learning rate independent of the scale of rewards.
    """

    name: ClassVar[str] = "ppo"
    heads: ClassVar[tuple[HeadKind, ...]] = (VOCABULARY, VALUE)
    keeps_groups: ClassVar[bool] = False  # an answer is compared with none
    num_generations: int = option(1, "Answers to each prompt.", low=1, high=1024)
    num_iterations: int = option(4, "How often all answers are learned from before others are drawn.", low=1, high=100)
    kl_coef: float = option(0.05, "Weight of the KL divergence to the model that training started from, in rewards.",
                            low=0.0)
    vf_coef: float = option(0.1, "Weight of the value's loss.", low=0.0)
    cliprange_value: float = option(0.2, "How far the updates with some answers may move a value.", low=0.0)
    gamma: float = option(1.0, "How much of a reward a token earlier has.", low=0.0, high=1.0)
    whiten_rewards: bool = option(False, "Divide the rewards of tokens by their standard deviation over the step.")
    whiten_advantages: bool = option(True, "Give the advantages of tokens a mean of 0 and a standard deviation of 1 "
                                     "over the step.")
    lam: float = option(0.95, "Lambda of the generalized advantages: 0 trusts the values, 1 the rewards.", low=0.0,
                        high=1.0)

    @property
    def needs_logp(self) -> bool:  # type: ignore[override]
        return True

    @property
    def needs_reference(self) -> bool:  # type: ignore[override]
        return self.kl_coef > 0 or self.beta > 0

    @property
    def sees_step(self) -> bool:  # type: ignore[override]
        return self.whiten_rewards or self.whiten_advantages

    def teaches(self, example: Example) -> bool:
        return example.supervised > 0  # the values, too

    def has_signal(self, example: Example) -> bool:
        return example.supervised > 0

    def count(self, examples: Sequence[Example]) -> float:
        return float(sum(example.supervised for example in examples))

    def weights(self, logp: Floats, batch: Batch) -> Signal:
        assert batch.values is not None
        values = batch.values.astype(np.float64)
        new = logp.astype(np.float64)
        old = _known("logp", new, batch)
        before = _known("values", values, batch)
        apart = old - batch.reference if batch.reference is not None else np.zeros(new.size)
        advantages = self.generalized_of(batch, apart, before)
        of_values, dvalues = self.value_loss(values, before, advantages + before)
        if self.whiten_advantages:
            advantages = whitened(advantages)
        sums = Sums()
        value, a = self.surrogate(new - old, advantages, sums)
        if self.beta and batch.reference is not None:
            u_log = batch.reference - new
            value = value - self.beta * (np.exp(u_log) - u_log - 1)
            a = a + self.beta * np.expm1(u_log)
        loss = -float(value.sum())
        tokens = float(new.size)
        metrics = {"loss/policy": (loss, tokens), "loss/value": (of_values, tokens),
                   "clip_ratio/region_mean": (float(sums.clipped), float(sums.ratios))}
        if batch.reference is not None:
            metrics["kl"] = (float(apart.sum()), tokens)
        return Signal(a.astype(np.float32), loss + self.vf_coef * of_values, metrics,
                      (self.vf_coef * dvalues).astype(np.float32))

    def generalized_of(self, batch: Batch, apart: Doubles, before: Doubles) -> Doubles:
        """The advantages of all tokens [S]; apart: log pi_old - log pi_ref, before: the values that were estimated."""
        parts = [part for _, part in batch.parts()]
        rewards = np.concatenate([self.token_rewards(example.reward, apart[part]) for example, part in batch.parts()])
        if self.whiten_rewards:
            rewards = whitened(rewards, keeps_mean=True)
        return np.concatenate([self.generalized(rewards[part], before[part]) for part in parts])

    def token_rewards(self, reward: float, apart: Doubles) -> Doubles:
        """The rewards of an answer's tokens. apart [n]: log pi_old - log pi_ref."""
        found = -self.kl_coef * apart
        found[-1] += reward
        return found

    def generalized(self, rewards: Doubles, values: Doubles) -> Doubles:
        """A_t = sum over l of (gamma lam)^l (r_{t+l} + gamma V_{t+l+1} - V_{t+l}); no value after the last token."""
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


def _known(name: str, now: Doubles, batch: Batch) -> Doubles:
    """The values that examples stored when they were first learned from, [S]; for others the current ones."""
    found: Doubles = now.copy()
    for example, part in batch.parts():
        if getattr(example, name).size:
            found[part] = getattr(example, name)
    return found


def whitened(values: Doubles, keeps_mean: bool = False) -> Doubles:
    """Scales values to a variance of 1 and a mean of 0, or their own mean, as TRL's masked_whiten; one value stays."""
    if values.size < 2:
        return values
    mean = values.mean()
    found: Doubles = (values - mean) / np.sqrt(values.var(ddof=1) + LEAST_VARIANCE)
    if keeps_mean:
        found += mean
    return found
