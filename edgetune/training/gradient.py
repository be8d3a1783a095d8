"""A network and an objective together, with a gradient: of a micro-batch, of a tree, or of several at once."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from itertools import pairwise

import numpy as np

from ..data.packing import Batch, Example, collate
from ..data.trees import Tree
from ..models.base import Passes
from ..objectives.base import Objective, Signal
from .passes import Begin, References, add_metrics, passes_of, score, whole_of
from .reference import Reference

BeginOf = Callable[[int, int], None]
"""As Begin, after the number of the micro-batch."""
Seen = Callable[[Batch, np.ndarray], None]
"""Called with a batch that an objective saw, and its log p [S], which is valid during the call."""


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
