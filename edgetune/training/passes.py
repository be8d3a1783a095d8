"""A network and an objective together: log-probabilities, `measure` over micro-batches, and with a gradient those of a
micro-batch, of a tree, or of several at once.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from itertools import pairwise
from typing import Any, Protocol

import numpy as np

from ..data.packing import Batch, Example, collate, grouped_indices
from ..data.trees import Tree
from ..errors import DataError
from ..models.base import Passes
from ..objectives.base import Objective, Signal
from .reference import Reference

BeginOf = Callable[[int, int], None]
"""As Begin, after the number of the micro-batch."""
Seen = Callable[[Batch, np.ndarray], None]
"""Called with a batch that an objective saw, and its log p [S], which is valid during the call."""


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


def _nothing(*_: object) -> None:
    pass


@dataclass(frozen=True)
class Gradient:
    """Adds the gradient of a loss, divided by n, to the adapter's gradient.

    reference: None: the model without the adapter.
    """

    decoder: Passes
    objective: Objective
    n: float
    reference: References | None = None
    begin: BeginOf = _nothing
    seen: Seen = _nothing

    def add(self, batch: Batch | Tree, number: int = 0) -> Signal:
        """Returns sums that are not divided. number: of the micro-batch, for `begin`.

        Where `a` does not depend on log p, the head's one pass gives log p and the gradient. Raises ValueError for an
        objective whose `a` does, but that has not set needs_logp: its gradient would be wrong.
        """
        begin = partial(self.begin, number)
        if isinstance(batch, Batch):
            begin(0)
            return self._batch(batch)
        if batch.is_divisible and not self.objective.sees_step:
            return self._branches(batch, begin)
        if self.objective.needs_logp:
            return self._together(lambda: [batch], number)
        return self._whole(batch, begin)

    def add_together(self, batches: Callable[[], Iterable[Batch | Tree]]) -> Signal:
        """Does what `add` does for several micro-batches whose examples the objective sees at once.

        batches: makes the same micro-batches each time.
        """
        return self._together(batches, 0)

    def _refer(self, batch: Batch) -> Batch:
        return (self.reference or Reference(self.decoder, top=self.objective.needs_top)).add_to(batch)

    def _batch(self, batch: Batch) -> Signal:
        if self.objective.needs_reference:
            batch = self._refer(batch)
        self.decoder.forward(batch, keep=True)
        if not self.objective.needs_logp:
            planned = self._planned(batch)
            return self._checked(batch, planned, self.decoder.backward(batch, planned.a / self.n))
        logp = self.decoder.head_forward(batch)
        if self.objective.needs_values:
            batch = replace(batch, values=self.decoder.values(batch))
        self.seen(batch, logp)
        signal = self.objective.weights(logp, batch)
        self.decoder.backward(batch, *self._divided(signal))
        return signal

    def _branches(self, tree: Tree, begin: Begin) -> Signal:
        """The objective sees each branch by itself, and nothing is predicted from the prefix."""
        prefix = tree.prefix
        if prefix:
            begin(0)
            self.decoder.score(prefix.batch)
        signals = []
        for number, branch in enumerate(tree.branches, 1):
            begin(number)
            signals.append(self._batch(branch.batch))
        if prefix:
            begin(0)
            self.decoder.forward(prefix.batch, keep=True)
            self.decoder.backward(prefix.batch, np.zeros(0, np.float32))
        return _sum(signals)

    def _whole(self, tree: Tree, begin: Begin) -> Signal:
        """The objective sees all examples at once, and its weights are known before log p is."""
        whole = self._refer(tree.whole) if self.objective.needs_reference else tree.whole
        if tree.prefix:
            begin(0)
            self.decoder.score(tree.prefix.batch)
        planned = self._planned(whole)
        return self._checked(whole, planned, self._backward(tree, [planned.a / self.n], begin))

    def _together(self, batches: Callable[[], Iterable[Batch | Tree]], first: int) -> Signal:
        """All micro-batches are computed for log p, and then for the gradient. first: the number of the first one."""
        logps = []
        values = []
        choices = []
        examples: list[Example] = []
        for number, batch in enumerate(batches(), first):
            of_batch = self._refer(whole_of(batch)) if self.objective.needs_top else whole_of(batch)
            found = np.zeros(of_batch.supervised.size, np.float32) if self.objective.needs_values else None
            logps.append(score(self.decoder, batch, partial(self.begin, number), found, of_batch.choices))
            values += [] if found is None else [found]
            choices.append(of_batch.choices)
            examples += batch.examples
        whole = replace(collate(examples), values=np.concatenate(values) if values else None)
        if self.objective.needs_reference:
            whole = self._refer(whole)
        logp = np.concatenate(logps)
        self.seen(whole, logp)
        signal = self.objective.weights(logp, whole)
        ends = np.cumsum([0, *(len(found) for found in logps)])
        divided = self._divided(signal)
        for number, (batch, (start, end)) in enumerate(zip(batches(), pairwise(ends), strict=True)):
            begin = partial(self.begin, first + number)
            if len(logps) > 1 and isinstance(batch, Tree) and batch.prefix:  # its place has another's by now
                begin(0)
                self.decoder.score(batch.prefix.batch)
            self._backward(batch, [each[start:end] for each in divided], begin, choices[number])
        return signal

    def _planned(self, batch: Batch) -> Signal:
        """The part of the signal that is known before log p: its `a`."""
        return self.objective.weights(np.zeros(batch.supervised.size, np.float32), batch)

    def _checked(self, batch: Batch, planned: Signal, logp: np.ndarray) -> Signal:
        self.seen(batch, logp)
        signal = self.objective.weights(logp, batch)
        if not np.array_equal(signal.a, planned.a):
            raise ValueError(f"the weights of {self.objective.name} depend on log p: set needs_logp")
        return signal

    def _divided(self, signal: Signal) -> list[np.ndarray]:
        """The arrays of a signal for `Passes.backward`, divided by n."""
        if signal.dvalues is None:
            return [signal.a / self.n]
        return [signal.a / self.n, signal.dvalues / np.float32(self.n)]

    def _backward(self, batch: Batch | Tree, signal: Sequence[np.ndarray], begin: Begin,
                  choices: np.ndarray | None = None) -> np.ndarray:
        """Passes a divided signal back, after a prefix was scored. Returns what `head_forward` gives; zeros with
        choices.
        """
        logp = np.zeros_like(signal[0] if choices is None else signal[0][:, 0])
        for number, part, entries in sorted(passes_of(batch, choices), key=lambda each: each[1].is_prefix):
            begin(number)
            self.decoder.forward(part, keep=True)
            found = self.decoder.backward(part, *(each[entries] for each in signal))
            if choices is None:
                logp[entries] = found
        return logp


def _sum(signals: Sequence[Signal]) -> Signal:
    metrics: dict[str, tuple[float, float]] = {}
    for signal in signals:
        add_metrics(metrics, signal)
    return Signal(np.concatenate([signal.a for signal in signals]), sum(signal.loss for signal in signals), metrics)
