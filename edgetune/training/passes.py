"""A network and an objective together: `learn` from a micro-batch or a tree, `measure` over many."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any, Protocol

import numpy as np

from ..data.packing import Batch, Example, collate, grouped_indices
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

    def add(self, batches: Sequence[Batch | Tree], signal: Signal) -> None:
        self.loss += signal.loss
        self.tokens += sum(batch.row_tokens for batch in batches)
        self.computed += sum(batch.computed for batch in batches)
        self.supervised += sum(example.supervised for batch in batches for example in batch.examples)
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
    reference = reference or Reference(decoder, top=objective.needs_top)
    if isinstance(batch, Batch):
        begin(0)
        return _learn_batch(decoder, objective, batch, n, reference, seen)
    if batch.is_divisible and not objective.sees_step:
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
        decoder.backward(batch, *_divided(signal, n))
        return signal
    planned = objective.weights(np.zeros(batch.supervised.size, np.float32), batch)
    logp = decoder.backward(batch, planned.a / n)
    seen(batch, logp)
    return _checked(objective, planned, objective.weights(logp, batch))


def _divided(signal: Signal, n: float) -> list[np.ndarray]:
    """What `Passes.backward` takes of a signal, divided by n."""
    return [signal.a / n] if signal.dvalues is None else [signal.a / n, signal.dvalues / np.float32(n)]


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
    if objective.needs_logp:
        return learn_together(decoder, objective, lambda: [tree], n, reference, lambda _, part: begin(part), seen)
    whole = reference.add_to(tree.whole) if objective.needs_reference else tree.whole
    if tree.prefix:
        begin(0)
        decoder.score(tree.prefix.batch)
    planned = objective.weights(np.zeros(whole.supervised.size, np.float32), whole)
    logp = _backward(decoder, tree, [planned.a / n], begin)
    seen(whole, logp)
    return _checked(objective, planned, objective.weights(logp, whole))


def learn_together(decoder: Passes, objective: Objective, batches: Callable[[], Iterable[Batch | Tree]], n: float,
                   reference: References, begin: Callable[[int, int], None],
                   seen: Seen = lambda _batch, _logp: None) -> Signal:
    """As `learn`, of several micro-batches, where the objective sees the examples of all at once: they are computed
    for log p first, and then for the gradient.

    batches: makes the same micro-batches each time. begin: as Begin, after the number of the micro-batch.
    """
    logps = []
    values = []
    choices = []
    examples: list[Example] = []
    for number, batch in enumerate(batches()):
        of_batch = reference.add_to(_whole(batch)) if objective.needs_top else _whole(batch)
        found = np.zeros(of_batch.supervised.size, np.float32) if objective.needs_values else None
        logps.append(score(decoder, batch, partial(begin, number), found, of_batch.choices))
        values += [] if found is None else [found]
        choices.append(of_batch.choices)
        examples += batch.examples
    whole = replace(collate(examples), values=np.concatenate(values) if values else None)
    if objective.needs_reference:
        whole = reference.add_to(whole)
    logp = np.concatenate(logps)
    seen(whole, logp)
    signal = objective.weights(logp, whole)
    ends = np.cumsum([len(found) for found in logps])[:-1]
    parts = zip(*(np.split(each, ends) for each in _divided(signal, n)), strict=True)
    for number, (batch, part) in enumerate(zip(batches(), parts, strict=True)):
        if len(logps) > 1 and isinstance(batch, Tree) and batch.prefix:  # another's keys and values are in its place
            begin(number, 0)
            decoder.score(batch.prefix.batch)
        _backward(decoder, batch, part, partial(begin, number), choices[number])
    return signal


def _whole(batch: Batch | Tree) -> Batch:
    return batch.whole if isinstance(batch, Tree) else batch


def _passes(batch: Batch | Tree, choices: np.ndarray | None) -> list[tuple[int, Batch, Any]]:
    """The parts that are computed, a prefix first: the number of each, it with its choices, and its entries of [S]."""
    parts: list[tuple[int, Batch, Any]] = [(0, batch, slice(None))] if isinstance(batch, Batch) else [
        (number, part.batch, part.entries) for number, part in enumerate(batch.parts, 0 if batch.prefix else 1)]
    if choices is None:
        return parts
    return [(number, replace(part, choices=choices[entries]), entries) for number, part, entries in parts]


def _backward(decoder: Passes, batch: Batch | Tree, signal: Sequence[np.ndarray], begin: Begin,
              choices: np.ndarray | None = None) -> np.ndarray:
    """Adds the gradient by what `_divided` says; a prefix was scored. Returns log p [S], zeros where it has choices."""
    logp = np.zeros(_whole(batch).supervised.size, np.float32)
    for number, part, entries in sorted(_passes(batch, choices), key=lambda each: each[1].is_prefix):
        begin(number)
        decoder.forward(part, keep=True)
        found = decoder.backward(part, *(each[entries] for each in signal))
        if choices is None:
            logp[entries] = found
    return logp


def score(decoder: Passes, batch: Batch | Tree, begin: Begin = lambda _: None,
          values: np.ndarray | None = None, choices: np.ndarray | None = None) -> np.ndarray:
    """log p [S]; of a tree, of its whole. values [S]: is filled by the value head. choices [S, k]: tokens whose log p
    is wanted too; then [S, 1 + k].
    """
    width = () if choices is None else (1 + choices.shape[1],)
    logp = np.zeros((_whole(batch).supervised.size, *width), np.float32)
    for number, part, entries in _passes(batch, choices):
        begin(number)
        logp[entries] = decoder.score(part)
        if values is not None and part.supervised.size:
            values[entries] = decoder.values(part)
    return logp


def scores(decoder: Passes, batches: Iterable[Batch | Tree]) -> dict[int, np.ndarray]:
    """log p of the supervised tokens of each example of batches, by its identity."""
    found: dict[int, np.ndarray] = {}
    for batch in batches:
        logp = score(decoder, batch)
        whole = _whole(batch)
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
    scored = (_scored(decoder, objective, batch, reference) for batch in batches)
    for each in _joined([*scored]) if objective.sees_step else scored:
        n += objective.count(each.whole.examples)
        signal = objective.weights(each.logp, each.whole)
        totals.add(each.batches, signal)
        rows += _loss_of_rows(objective, each.whole, each.logp) if signal.losses is None else signal.losses.tolist()
    if not n:
        raise DataError("the rows have no supervised token", "check their completions")
    return Measurement(totals.loss / n, totals.supervised, totals.metrics, tuple(rows))


@dataclass(frozen=True)
class _Scored:
    """Micro-batches, what an objective sees of them, and log p [S]."""

    batches: Sequence[Batch | Tree]
    whole: Batch
    logp: np.ndarray


def _scored(decoder: Passes, objective: Objective, batch: Batch | Tree, reference: References | None) -> _Scored:
    whole = _whole(batch)
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
