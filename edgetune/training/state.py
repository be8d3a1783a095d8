"""What a run has measured so far, and by it the best adapter: the part of a checkpoint that is not an array."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from statistics import fmean
from typing import Any

WINDOW = 5  # steps whose losses are averaged at the beginning and at the end of a run


@dataclass
class RunState:
    """best, best_step: the lowest held-out loss, and the step after which it was measured; the measurement before the
    first step counts. lowest: of those after it, by which misses, measurements without improvement, are counted.
    """

    eval_before: float | None = None
    eval_now: float | None = None
    best: float | None = None
    best_step: int = 0
    lowest: float | None = None
    misses: int = 0
    measured: int = -1  # the last step after which the held-out loss was measured
    history: list[list[float]] = field(default_factory=list)  # [step, held-out loss] of every measurement
    first_losses: list[float] = field(default_factory=list)  # of the first steps, WINDOW at most
    last_losses: list[float] = field(default_factory=list)
    seconds: float = 0.0
    written: int = 0  # bytes of checkpoints
    changed: list[dict[str, Any]] = field(default_factory=list)  # what resumes were allowed to change: name, was, now

    def measure(self, step: int, loss: float) -> bool:
        """Takes a measurement of the held-out loss; returns whether it is the best so far."""
        self.history.append([step, loss])
        self.measured = step
        self.eval_now = loss
        if step == 0:
            self.eval_before = loss
        elif math.isfinite(loss) and (self.lowest is None or loss < self.lowest):
            self.lowest = loss
            self.misses = 0
        else:
            self.misses += 1
        if not math.isfinite(loss) or (self.best is not None and loss >= self.best):
            return False
        self.best = loss
        self.best_step = step
        return True

    def learn(self, loss: float) -> None:
        """Takes the loss of a step."""
        if len(self.first_losses) < WINDOW:
            self.first_losses.append(loss)
        self.last_losses = [*self.last_losses, loss][-WINDOW:]

    def forget_measurements(self) -> RunState:
        """The state where other rows are held out from now on."""
        return RunState(first_losses=self.first_losses, last_losses=self.last_losses, seconds=self.seconds,
                        written=self.written, changed=self.changed)

    @property
    def learned(self) -> tuple[float, float] | None:
        """The mean loss of the first and of the last steps; None where none was done."""
        return (fmean(self.first_losses), fmean(self.last_losses)) if self.first_losses else None

    def measurements(self) -> dict[str, Any]:
        """What run.json says of the held-out rows; null for a loss that is unknown or no number."""
        after = self.eval_now if self.best is None else self.best
        return {"loss_before": _finite(self.eval_before), "loss_after": _finite(after), "best_step": self.best_step,
                "history": [[int(step), _finite(loss)] for step, loss in self.history]}


def _finite(loss: float | None) -> float | None:
    return loss if loss is not None and math.isfinite(loss) else None
