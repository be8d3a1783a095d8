"""A network and an objective together, without a gradient: log-probabilities, and `measure` over micro-batches."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Protocol

import numpy as np

from ..data.packing import Batch, collate, grouped_indices
from ..data.trees import Tree
from ..errors import DataError
from ..models.base import Passes
from ..objectives.base import Objective, Signal
from .reference import Reference


@dataclass
class Totals:
    """Sums over micro-batches."""

    loss: float = 0.0
    tokens: int = 0
    computed: int = 0  # of these; common prefixes count once
    supervised: int = 0
    _metrics: dict[str, tuple[float, float]] = field(default_factory=dict)

    def add(self, batches: Sequence[Batch | Tree], signal: Signal) -> None:
        self.loss += signal.loss
        self.tokens += sum(batch.row_tokens for batch in batches)
        self.computed += sum(batch.computed for batch in batches)
        self.supervised += sum(example.supervised for batch in batches for example in batch.examples)
        add_metrics(self._metrics, signal)

    @property
    def metrics(self) -> dict[str, float]:
        """The objective's metrics as means; those that were counted nowhere are left out."""
        return {name: value / count for name, (value, count) in self._metrics.items() if count}


@dataclass(frozen=True)
class LossMeasurement:
    """The objective's loss (natural log) and metrics over held-out examples, and the number of supervised tokens.

    rows: the loss of each row, or group of rows, in the order in which they were measured.
    """

    loss: float
    supervised: int
    metrics: Mapping[str, float]
    rows: tuple[float, ...] = ()


class References(Protocol):
    """Knows log p by the model that an objective compares with."""

    def add_to(self, batch: Batch) -> Batch: ...


Begin = Callable[[int], None]
"""Called before each pass of a part: 0, which is the prefix where there is one, 1, ..."""


def whole_of(batch: Batch | Tree) -> Batch:
    """The batch that an objective sees."""
    return batch.whole if isinstance(batch, Tree) else batch


def passes_of(batch: Batch | Tree, choices: np.ndarray | None) -> list[tuple[int, Batch, Any]]:
    """(number, part with its choices, its entries of [S]) of each part that is computed, a prefix first."""
    parts: list[tuple[int, Batch, Any]] = [(0, batch, slice(None))] if isinstance(batch, Batch) else [
        (number, part.batch, part.entries) for number, part in enumerate(batch.parts, 0 if batch.prefix else 1)]
    if choices is None:
        return parts
    return [(number, replace(part, choices=choices[entries]), entries) for number, part, entries in parts]


def score(decoder: Passes, batch: Batch | Tree, begin: Begin = lambda _: None,
          values: np.ndarray | None = None, choices: np.ndarray | None = None) -> np.ndarray:
    """log p [S], or what else `Passes.head_forward` gives; of a tree, of its whole. values [S]: is filled by the value
    head. choices [S, k]: tokens whose log p is wanted too; then [S, 1 + k].
    """
    logp = np.zeros(0, np.float32)
    for number, part, entries in passes_of(batch, choices):
        begin(number)
        found = decoder.score(part)
        if not logp.size:
            logp = np.zeros((whole_of(batch).supervised.size, *found.shape[1:]), np.float32)
        logp[entries] = found
        if values is not None and part.supervised.size:
            values[entries] = decoder.values(part)
    return logp


def scores(decoder: Passes, batches: Iterable[Batch | Tree]) -> dict[int, np.ndarray]:
    """log p of the supervised tokens of each example of batches, by its identity."""
    found: dict[int, np.ndarray] = {}
    for batch in batches:
        logp = score(decoder, batch)
        whole = whole_of(batch)
        found |= {id(example): logp[part].copy() for example, part in whole.parts()}
    return found


def add_metrics(sums: dict[str, tuple[float, float]], signal: Signal) -> None:
    """Adds the sum and the count of each metric."""
    for name, (value, count) in signal.metrics.items():
        value_before, count_before = sums.get(name, (0.0, 0.0))
        sums[name] = (value_before + value, count_before + count)


def measure(decoder: Passes, objective: Objective, batches: Iterable[Batch | Tree],
            reference: References | None = None) -> LossMeasurement:
    """Measures loss and metrics without a gradient. Raises DataError if nothing is supervised."""
    totals = Totals()
    n = 0.0
    rows: list[float] = []
    scored = (_scored(decoder, objective, batch, reference) for batch in batches)
    for each in _joined([*scored]) if objective.sees_step else scored:
        n += objective.count(each.whole.examples)
        signal = objective.weights(each.logp, each.whole)
        totals.add(each.batches, signal)
        rows += _loss_of_rows(objective, each.whole, each.logp) if signal.losses is None else signal.losses.tolist()
    if not n:
        raise DataError("the rows have no supervised token", "check their completions")
    return LossMeasurement(totals.loss / n, totals.supervised, totals.metrics, tuple(rows))


@dataclass(frozen=True)
class _Scored:
    """Micro-batches, the batch that an objective sees, and log p [S]."""

    batches: Sequence[Batch | Tree]
    whole: Batch
    logp: np.ndarray


def _scored(decoder: Passes, objective: Objective, batch: Batch | Tree, reference: References | None) -> _Scored:
    whole = whole_of(batch)
    if objective.needs_reference:
        whole = (reference or Reference(decoder, top=objective.needs_top)).add_to(whole)
    return _Scored([batch], whole, score(decoder, batch, choices=whole.choices))


def _joined(scored: Sequence[_Scored]) -> Iterator[_Scored]:
    """All as one, if there are any."""
    if not scored:
        return
    whole = collate([example for each in scored for example in each.whole.examples])
    references = [each.whole.reference for each in scored if each.whole.reference is not None]
    if references:
        whole = replace(whole, reference=np.concatenate(references))
    yield _Scored([batch for each in scored for batch in each.batches], whole,
                  np.concatenate([each.logp for each in scored]))


def _loss_of_rows(objective: Objective, batch: Batch, logp: np.ndarray) -> Iterator[float]:
    """The objective's loss of each row, or group of rows, of a batch; logp [S] is of all of them."""
    parts = [part for _, part in batch.parts()]
    for indices in grouped_indices(batch.examples):
        row = collate([batch.examples[i] for i in indices])
        wanted = slice(parts[indices[0]].start, parts[indices[-1]].stop)
        row = replace(row, **{name: getattr(batch, name)[..., wanted] for name in ("reference", "views")
                              if getattr(batch, name) is not None})
        row = replace(row, **{name: getattr(batch, name)[wanted] for name in ("choices", "choices_reference")
                              if getattr(batch, name) is not None})
        if count := objective.count(row.examples):
            yield objective.weights(logp[wanted], row).loss / count
