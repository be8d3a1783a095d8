"""A network and an objective together: `learn` from a micro-batch, `measure` over many."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from hashlib import sha256

import numpy as np

from ..data.packing import Batch, Example, collate, grouped_indices, is_supervised
from ..errors import DataError
from ..models.base import Passes
from ..objectives.base import Objective, Signal


@dataclass
class Totals:
    """Sums over micro-batches."""

    loss: float = 0.0
    tokens: int = 0
    computed: int = 0  # of these; what rows share counts once
    supervised: int = 0
    _metrics: dict[str, tuple[float, float]] = field(default_factory=dict)

    def add(self, batch: Batch, signal: Signal) -> None:
        self.loss += signal.loss
        self.tokens += batch.row_tokens
        self.computed += batch.tokens.size
        self.supervised += batch.supervised.size
        for name, (value, count) in signal.metrics.items():
            value_before, count_before = self._metrics.get(name, (0.0, 0.0))
            self._metrics[name] = (value_before + value, count_before + count)

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


class Reference:
    """log p by the base, without the adapter, at the supervised positions of examples: computed once for each example.

    Each example is a batch of one, so that its value does not depend on other rows: a resumed run gets the same bits.
    Takes 4 bytes a supervised position.
    """

    def __init__(self, decoder: Passes) -> None:
        self.decoder = decoder
        self._known: dict[bytes, np.ndarray] = {}  # the base is one, and its template is in the tokens

    def add_to(self, batch: Batch) -> Batch:
        found = [self._of(example) for example in batch.examples]
        return replace(batch, reference=np.concatenate(found))

    def _of(self, example: Example) -> np.ndarray:
        mask = is_supervised(example.weights)
        key = sha256(example.tokens.tobytes() + mask.tobytes()).digest()
        if key not in self._known:
            with self.decoder.linear.off():
                self._known[key] = self.decoder.score(collate([example])).copy()
        return self._known[key]


def learn(decoder: Passes, objective: Objective, batch: Batch, n: float, reference: Reference | None = None) -> Signal:
    """Adds the gradient of the loss, divided by n, to the adapter's gradient; returns sums that are not divided.

    Where `a` does not depend on log p, the head's one pass gives log p and the gradient. Raises ValueError for an
    objective whose `a` does, but that has not set needs_logp: its gradient would be wrong.
    """
    if objective.needs_reference:
        batch = (reference or Reference(decoder)).add_to(batch)
    decoder.forward(batch, keep=True)
    if objective.needs_logp:
        signal = objective.weights(decoder.head_forward(batch), batch)
        decoder.backward(batch, signal.a / n)
        return signal
    planned = objective.weights(np.zeros(batch.supervised.size, np.float32), batch)
    logp = decoder.backward(batch, planned.a / n)
    signal = objective.weights(logp, batch)
    if not np.array_equal(signal.a, planned.a):
        raise ValueError(f"the weights of {objective.name} depend on log p: set needs_logp")
    return signal


def measure(decoder: Passes, objective: Objective, batches: Iterable[Batch],
            reference: Reference | None = None) -> Measurement:
    """No gradient. Raises DataError where nothing is supervised."""
    totals = Totals()
    n = 0.0
    rows: list[float] = []
    for batch in batches:
        if objective.needs_reference:
            batch = (reference or Reference(decoder)).add_to(batch)
        n += objective.count(batch.examples)
        logp = decoder.score(batch)
        totals.add(batch, objective.weights(logp, batch))
        rows += _loss_of_rows(objective, batch, logp)
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
