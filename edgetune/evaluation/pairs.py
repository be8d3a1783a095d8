"""Measures which of two answers a model prefers, over rows of pairs: by edgetune's engine, or by llama.cpp."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from ..adapters.base import Artifact
from ..adapters.lora import Lora
from ..data.dataset import Dataset
from ..data.packing import Example, collate, grouped_indices, is_supervised
from ..errors import DataError
from ..formats.bundle import Bundle
from ..objectives.base import Objective
from ..serving.rollouts.forward import open_decoder

if TYPE_CHECKING:
    from ..serving.llama import LlamaModel

LogP = list[NDArray[np.float32]]  # of each example, at its supervised tokens


@dataclass(frozen=True)
class PairScores:
    """Scores over pairs. Log p is natural, and summed over an answer's tokens. A margin is the log p of the chosen
    answer minus that of the rejected one, in the mean over pairs.

    preference_accuracy: share of pairs whose margin is above 0. reward_accuracy, reward_margin: the same relative to
    the base, None where that answers. loss: -log p a token of the chosen answers; objective_loss: by the given
    objective.
    """

    engine: str
    pairs: int
    tokens: int  # of the chosen answers
    loss: float
    preference_accuracy: float
    margin: float
    reward_accuracy: float | None = None
    reward_margin: float | None = None
    objective_loss: float | None = None

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


def native_logp(bundle: Bundle, dataset: Dataset, adapter: Artifact | Lora, threads: int = 0,
                backend: str = "auto") -> LogP:
    """The log p of each example's supervised tokens, by edgetune's engine."""
    longest = max(example.tokens.size for example in dataset.examples)
    decoder = open_decoder(bundle.gguf, adapter, threads=threads, max_tokens=longest, max_length=longest,
                           backend=backend)
    return [decoder.score(collate([example])).copy() for example in dataset.examples]


def served_logp(served: LlamaModel, dataset: Dataset) -> LogP:
    """The log p of each example's supervised tokens, by llama.cpp with the adapter in use."""
    served.reset()
    return [np.asarray(served.logprobs(example.tokens.tolist(), is_supervised(example.weights)), np.float32)[
        is_supervised(example.weights)] for example in dataset.examples]


def score(engine: str, examples: Sequence[Example], logp: LogP, of_base: LogP | None = None,
          objective: Objective | None = None) -> PairScores:
    """Scores the log p of pairs. of_base: of the base, if `logp` is of an adapter. objective: one that reads pairs."""
    margins = margins_of(logp)
    rewards = margins - margins_of(of_base) if of_base else None
    chosen = logp[::2]
    tokens = sum(part.size for part in chosen)
    if not tokens:
        raise DataError("the data has no token to evaluate by", "give it pairs with an answer")
    return PairScores(
        engine, margins.size, tokens, -float(sum(part.sum(dtype=np.float64) for part in chosen)) / tokens,
        float((margins > 0).mean()), float(margins.mean()),
        None if rewards is None else float((rewards > 0).mean()), None if rewards is None else float(rewards.mean()),
        None if objective is None else _loss(objective, examples, logp, of_base or logp))


def margins_of(logp: LogP) -> NDArray[np.float64]:
    """[pairs]"""
    sums = np.array([part.sum(dtype=np.float64) for part in logp])
    return sums[::2] - sums[1::2]  # type: ignore[no-any-return]


def _loss(objective: Objective, examples: Sequence[Example], logp: LogP, of_base: LogP) -> float:
    """The mean of the objective over pairs, which it sees one by one."""
    total = 0.0
    n = 0.0
    for indices in grouped_indices(examples):
        batch = collate([examples[i] for i in indices])
        if objective.needs_reference:
            batch = replace(batch, reference=np.concatenate([of_base[i] for i in indices]))
        total += objective.weights(np.concatenate([logp[i] for i in indices]), batch).loss
        n += objective.count(batch.examples)
    return total / n


