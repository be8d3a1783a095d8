"""Common code of objectives of whole answers: log-probabilities of answers from those of tokens, and weights back."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ..data.packing import Batch

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Answers:
    """The n examples of a batch. logp, reference: sums over the supervised tokens of each, of which there are `sizes`.

    reference: by the reference model, 0 where the objective needs none. parts: of [S].
    """

    logp: Floats  # [n]
    reference: Floats  # [n]
    sizes: Floats  # [n]
    rewards: Floats  # [n], of the rows
    parts: tuple[slice, ...]

    @property
    def ratio(self) -> Floats:
        """log p(answer) - log p_ref(answer), [n]."""
        return self.logp - self.reference

    def spread(self, slopes: Floats) -> NDArray[np.float32]:
        """a [S] of a loss with these derivatives by each answer's summed log p, negated: a token has its answer's."""
        a = np.zeros(self.parts[-1].stop if self.parts else 0, np.float32)
        for part, slope in zip(self.parts, slopes, strict=True):
            a[part] = slope
        return a


def answers_of(logp: NDArray[np.float32], batch: Batch) -> Answers:
    parts = tuple(part for _, part in batch.parts())
    sums = np.array([logp[part].sum(dtype=np.float64) for part in parts])
    reference = np.zeros(len(parts))
    if batch.reference is not None:
        reference = np.array([batch.reference[part].sum(dtype=np.float64) for part in parts])
    sizes = np.array([part.stop - part.start for part in parts], np.float64)
    return Answers(sums, reference, sizes, np.array([example.reward for example in batch.examples]), parts)


def sigmoid(x: Floats) -> Floats:
    return np.exp(log_sigmoid(x))


def log_sigmoid(x: Floats) -> Floats:
    return -np.logaddexp(0, -x)


def pair_metrics(answers: Answers, rewards: Floats) -> dict[str, tuple[float, float]]:
    """TRL's metrics of pairs. rewards [n]: the implicit reward of each answer."""
    pairs = len(answers.parts) / 2
    better = rewards[::2]
    worse = rewards[1::2]
    sums = {"rewards/chosen": better.sum(), "rewards/rejected": worse.sum(),
            "rewards/accuracies": (better > worse).sum(), "rewards/margins": (better - worse).sum(),
            "logps/chosen": answers.logp[::2].sum(), "logps/rejected": answers.logp[1::2].sum()}
    return {name: (float(value), pairs) for name, value in sums.items()}
