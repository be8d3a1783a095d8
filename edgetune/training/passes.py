"""A network and an objective together: `learn` from a micro-batch or a tree, `measure` over many."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Protocol

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
    computed: int = 0  # of these; what rows share counts once
    supervised: int = 0
    _metrics: dict[str, tuple[float, float]] = field(default_factory=dict)

    def add(self, batch: Batch | Tree, signal: Signal) -> None:
        self.loss += signal.loss
        self.tokens += batch.row_tokens
        self.computed += batch.computed
        self.supervised += sum(example.supervised for example in batch.examples)
        _add_metrics(self._metrics, signal)

    @property
    def metrics(self) -> dict[str, float]:
        """The objective's metrics as means; those that were counted nowhere are left out."""
        return {name: value / count for name, (value, count) in self._metrics.items() if count}


@dataclass(frozen=True)
class Measurement:
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
Seen = Callable[[Batch, np.ndarray], None]
"""Called with what an objective saw, and log p [S] of it, which is valid during the call."""


def learn(decoder: Passes, objective: Objective, batch: Batch | Tree, n: float, reference: References | None = None,
          begin: Begin = lambda _: None, seen: Seen = lambda _batch, _logp: None) -> Signal:
    """Adds the gradient of the loss, divided by n, to the adapter's gradient; returns sums that are not divided.

    Where `a` does not depend on log p, the head's one pass gives log p and the gradient. Raises ValueError for an
    objective whose `a` does, but that has not set needs_logp: its gradient would be wrong.
    """
    reference = reference or Reference(decoder)
    if isinstance(batch, Batch):
        begin(0)
        return _learn_batch(decoder, objective, batch, n, reference, seen)
    if batch.is_divisible:
        return _learn_branches(decoder, objective, batch, n, reference, begin, seen)
    return _learn_whole(decoder, objective, batch, n, reference, begin, seen)


def _learn_batch(decoder: Passes, objective: Objective, batch: Batch, n: float, reference: References,
                 seen: Seen) -> Signal:
    if objective.needs_reference:
        batch = reference.add_to(batch)
    decoder.forward(batch, keep=True)
    if objective.needs_logp:
        logp = decoder.head_forward(batch)
        if objective.needs_values:
            batch = replace(batch, values=decoder.values(batch))
        seen(batch, logp)
        signal = objective.weights(logp, batch)
        if signal.dvalues is None:
            decoder.backward(batch, signal.a / n)
        else:
            decoder.backward(batch, signal.a / n, signal.dvalues / np.float32(n))
        return signal
    planned = objective.weights(np.zeros(batch.supervised.size, np.float32), batch)
    logp = decoder.backward(batch, planned.a / n)
    seen(batch, logp)
    return _checked(objective, planned, objective.weights(logp, batch))


def _checked(objective: Objective, planned: Signal, signal: Signal) -> Signal:
    if not np.array_equal(signal.a, planned.a):
        raise ValueError(f"the weights of {objective.name} depend on log p: set needs_logp")
    return signal


def _learn_branches(decoder: Passes, objective: Objective, tree: Tree, n: float, reference: References,
                    begin: Begin, seen: Seen) -> Signal:
    """The objective sees each branch by itself, and nothing is predicted from the prefix."""
    prefix = tree.prefix
    if prefix:
        begin(0)
        decoder.score(prefix.batch)
    signals = []
    for number, branch in enumerate(tree.branches, 1):
        begin(number)
        signals.append(_learn_batch(decoder, objective, branch.batch, n, reference, seen))
    if prefix:
        begin(0)
        decoder.forward(prefix.batch, keep=True)
        decoder.backward(prefix.batch, np.zeros(0, np.float32))
    return _sum(signals)


def _learn_whole(decoder: Passes, objective: Objective, tree: Tree, n: float, reference: References,
                 begin: Begin, seen: Seen) -> Signal:
    """The objective sees all examples at once: where it needs log p, all parts are computed once more."""
    whole = reference.add_to(tree.whole) if objective.needs_reference else tree.whole
    logp = np.zeros(whole.supervised.size, np.float32)
    if objective.needs_logp:
        logp = score(decoder, tree, begin)
    elif tree.prefix:
        begin(0)
        decoder.score(tree.prefix.batch)
    planned = objective.weights(logp.copy(), whole)
    last = [(0, tree.prefix)] if tree.prefix else []
    for number, part in [*enumerate(tree.branches, 1), *last]:
        begin(number)
        decoder.forward(part.batch, keep=True)
        logp[part.entries] = decoder.backward(part.batch, planned.a[part.entries] / n)
    seen(whole, logp)
    return planned if objective.needs_logp else _checked(objective, planned, objective.weights(logp, whole))


def score(decoder: Passes, batch: Batch | Tree, begin: Begin = lambda _: None) -> np.ndarray:
    """log p [S]; of a tree, of its whole."""
    if isinstance(batch, Batch):
        return decoder.score(batch)
    logp = np.zeros(batch.whole.supervised.size, np.float32)
    for number, part in enumerate(batch.parts, 0 if batch.prefix else 1):
        begin(number)
        logp[part.entries] = decoder.score(part.batch)
    return logp


def scores(decoder: Passes, batches: Iterable[Batch | Tree]) -> dict[int, np.ndarray]:
    """log p of the supervised tokens of each example of batches, by its identity."""
    found: dict[int, np.ndarray] = {}
    for batch in batches:
        logp = score(decoder, batch)
        whole = batch.whole if isinstance(batch, Tree) else batch
        found |= {id(example): logp[part].copy() for example, part in whole.parts()}
    return found


def _sum(signals: Sequence[Signal]) -> Signal:
    metrics: dict[str, tuple[float, float]] = {}
    for signal in signals:
        _add_metrics(metrics, signal)
    return Signal(np.concatenate([signal.a for signal in signals]), sum(signal.loss for signal in signals), metrics)


def _add_metrics(sums: dict[str, tuple[float, float]], signal: Signal) -> None:
    for name, (value, count) in signal.metrics.items():
        value_before, count_before = sums.get(name, (0.0, 0.0))
        sums[name] = (value_before + value, count_before + count)


def measure(decoder: Passes, objective: Objective, batches: Iterable[Batch | Tree],
            reference: References | None = None) -> Measurement:
    """No gradient. Raises DataError where nothing is supervised."""
    totals = Totals()
    n = 0.0
    rows: list[float] = []
    for batch in batches:
        whole = batch.whole if isinstance(batch, Tree) else batch
        if objective.needs_reference:
            whole = (reference or Reference(decoder)).add_to(whole)
        n += objective.count(whole.examples)
        logp = score(decoder, batch)
        totals.add(batch, objective.weights(logp, whole))
        rows += _loss_of_rows(objective, whole, logp)
    if not n:
        raise DataError("the rows have no supervised token", "check their completions")
    return Measurement(totals.loss / n, totals.supervised, totals.metrics, tuple(rows))


def _loss_of_rows(objective: Objective, batch: Batch, logp: np.ndarray) -> Iterator[float]:
    """The objective's loss of each row, or group of rows, of a batch; logp [S] is of all of them."""
    parts = [part for _, part in batch.parts()]
    for indices in grouped_indices(batch.examples):
        row = collate([batch.examples[i] for i in indices])
        wanted = slice(parts[indices[0]].start, parts[indices[-1]].stop)
        if batch.reference is not None:
            row = replace(row, reference=batch.reference[wanted])
        if count := objective.count(row.examples):
            yield objective.weights(logp[wanted], row).loss / count
