"""The measurements of a run and the adapter to keep by them: the part of a checkpoint that is not an array.

The mean over few held-out rows is noisy: with six rows it rises by a fifth when one gets less likely, while more and
more of all answers become right. A measurement is therefore worse than the lowest only if paired differences of its
rows say so, by the rule of standard errors (Breiman et al. 1984, section 3.4.3). The last adapter that is not worse is
kept.

A worse held-out loss is no overfitting while the training rows are no better known than the held-out ones: the run has
yet to learn them. A run learns the form of answers first, and late which answer belongs to which question; until then
both losses stay.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

WINDOW = 5  # steps whose losses are averaged at the beginning and at the end of a run
ERRORS = 2.0  # standard errors by which a loss must be higher to be worse
KNOWN = 0.5  # share of the held-out loss; training rows with a lower loss are known better than held-out ones
MOST = 256  # numbers that are kept of a measurement: of more rows, means of neighbours


@dataclass
class RunState:
    """The state of a run. It has legs: the first, and one for each time that epochs were added after its end.

    best, best_step: the held-out loss of the adapter to keep, and the step of its measurement: the leg's last one that
    is not worse than its lowest; the leg's first adapter counts. lowest, lowest_rows: the lowest loss after that, in
    all and of the rows. misses: measurements since it; worse: the last ones of these in a row that are worse;
    overfitted: the same, counted only if the training rows were known.
    """

    eval_before: float | None = None
    eval_now: float | None = None
    best: float | None = None
    best_step: int = 0
    lowest: float | None = None
    lowest_rows: list[float] = field(default_factory=list)
    misses: int = 0
    worse: int = 0
    overfitted: int = 0
    measured: int = -1  # the last step after which the held-out loss was measured
    history: list[list[float]] = field(default_factory=list)  # [step, held-out loss] of every measurement
    first_losses: list[float] = field(default_factory=list)  # of the first steps, WINDOW at most
    last_losses: list[float] = field(default_factory=list)
    losses: int = 0  # steps whose loss was taken
    start: dict[str, Any] | None = None  # the adapter that the run began from: path and fingerprint; None: the seed's
    begun_at: int = 0  # steps before this leg
    more: float = 0.0  # epochs of this leg; 0: those of the options
    loss_at_start: float | None = None  # of this leg, if an earlier one has measured it
    measured_before: int = 0  # measurements of earlier legs
    legs: list[dict[str, Any]] = field(default_factory=list)  # the earlier ones
    seconds: float = 0.0
    written: int = 0  # bytes of checkpoints
    changed: list[dict[str, Any]] = field(default_factory=list)  # changes allowed to resumes: name, was, now

    def measure(self, step: int, loss: float, rows: Sequence[float] = ()) -> bool:
        """Records the held-out loss, in all and of the rows; returns whether its adapter is to be kept."""
        self.history.append([step, loss])
        self.measured = step
        self.eval_now = loss
        if step == 0:
            self.eval_before = loss
        if step > self.begun_at:
            self._count(loss, few(rows))
        started, before = self.leg_history[0]
        is_no_better = step > self.begun_at == started and loss >= before
        if not math.isfinite(loss) or self.worse or is_no_better:
            return False
        self.best = loss
        self.best_step = step
        return True

    def _count(self, loss: float, rows: list[float]) -> None:
        if self.lowest is None and self.best_step > self.begun_at:  # the state of an earlier version
            self.lowest = self.best
        if math.isfinite(loss) and (self.lowest is None or loss < self.lowest):
            self.lowest = loss
            self.lowest_rows = rows
            self.misses = 0
            self.worse = 0
            self.overfitted = 0
            return
        self.misses += 1
        is_unknown = not math.isfinite(loss) or len(rows) != len(self.lowest_rows)
        is_worse = is_unknown or is_higher(rows, self.lowest_rows)
        self.worse = self.worse + 1 if is_worse else 0
        # training rows are hardly better known than held-out ones; by losses, not by rewards
        is_learning = bool(self.last_losses) and 0 < KNOWN * loss < mean(self.last_losses)
        self.overfitted = self.overfitted + 1 if is_worse and not is_learning else 0

    def learn(self, loss: float) -> None:
        """Takes the loss of a step."""
        self.losses += 1
        if len(self.first_losses) < WINDOW:
            self.first_losses.append(loss)
        self.last_losses = [*self.last_losses, loss][-WINDOW:]

    def forget_measurements(self) -> RunState:
        """The state where other rows are held out from now on."""
        return RunState(first_losses=self.first_losses, last_losses=self.last_losses, losses=self.losses,
                        start=self.start, begun_at=self.begun_at, more=self.more, legs=self.legs,
                        seconds=self.seconds, written=self.written, changed=self.changed)

    @property
    def from_seed(self) -> bool:
        """Whether the seed determines the adapter that this leg began with."""
        return self.start is None and self.begun_at == 0

    @property
    def leg_history(self) -> list[tuple[int, float]]:
        """(step, held-out loss) of this leg, that of its first adapter included."""
        before = [] if self.loss_at_start is None else [(self.begun_at, self.loss_at_start)]
        return [*before, *((int(step), loss) for step, loss in self.history[self.measured_before:])]

    @property
    def learned(self) -> tuple[float, float] | None:
        """The mean loss of the first and of the last steps, which are different ones; None where none was done."""
        if not self.first_losses:
            return None
        each = max(min(WINDOW, self.losses // 2), 1)
        return mean(self.first_losses[:each]), mean(self.last_losses[-each:])

    def measurements(self) -> dict[str, Any]:
        """The part of run.json on held-out rows; null for a loss that is unknown, NaN or infinite."""
        after = self.eval_now if self.best is None else self.best
        return {"loss_before": _finite(self.eval_before), "loss_after": _finite(after), "best_step": self.best_step,
                "history": [[int(step), _finite(loss)] for step, loss in self.history]}


def next_leg(record: Mapping[str, Any], more: float) -> RunState:
    """The state at the beginning of `more` epochs after the end of a run, of which `record` is run.json's content."""
    held = record["held_out"] or {"loss_before": None, "loss_after": None, "best_step": 0, "history": []}
    done = int(record["steps"])
    leg = {"begun_at": record["begun_at"], "steps": done, "more": record["more"], "best_step": held["best_step"],
           "loss_after": held["loss_after"], "verdict": record["verdict"]}
    loss = held["loss_after"]
    history = [[step, math.nan if loss is None else loss] for step, loss in held["history"]]
    return RunState(eval_before=held["loss_before"], best=loss, best_step=done, eval_now=loss, loss_at_start=loss,
                    measured=-1 if loss is None else done, history=history, measured_before=len(history),
                    start=record["start"], begun_at=done, more=more, legs=[*record["legs"], leg],
                    seconds=record["seconds"], changed=record["changed"])


def mean(values: Sequence[float]) -> float:
    """The same as statistics.fmean, whose module takes half a megabyte of a small board."""
    return math.fsum(values) / len(values)


def few(rows: Sequence[float]) -> list[float]:
    """The losses of rows; of more than MOST rows, means over equal numbers of neighbours."""
    size = -(-len(rows) // MOST) or 1
    return [mean(rows[i:i + size]) for i in range(0, len(rows), size)]


def is_higher(rows: Sequence[float], others: Sequence[float]) -> bool:
    """Whether the losses of rows are higher in one measurement than in another, by more than ERRORS standard errors."""
    differences = [a - b for a, b in zip(rows, others, strict=True)]
    if len(differences) < 2:
        return sum(differences) > 0
    return mean(differences) > ERRORS * float(np.std(differences, ddof=1)) / math.sqrt(len(differences))


def _finite(loss: float | None) -> float | None:
    return loss if loss is not None and math.isfinite(loss) else None
