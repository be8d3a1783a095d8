"""The steps, measurements and time of a run, estimated before it begins from options, rows and a speed."""

from __future__ import annotations

from dataclasses import dataclass

from ..data.anchors import TYPICAL
from ..data.dataset import Dataset
from ..models.base import Structure
from ..models.linear import RunShape
from . import length
from .config import TrainConfig


@dataclass(frozen=True)
class Forecast:
    """The forecast of a run. steps: None without rows and the option `steps`. tokens: learned in all steps, each pass
    counted, those of anchors estimated. measurements: of the held-out loss; measured_tokens: in all of them.
    stops_early: whether a rising held-out loss ends the run before.
    """

    rows: int
    held_out: int
    steps: int | None
    tokens: float
    measurements: int = 0
    measured_tokens: int = 0
    stops_early: bool = False

    def seconds(self, structure: Structure, run: RunShape, tokens_per_s: float) -> float | None:
        """The duration at a speed of training. A measurement has no backward pass: it takes forward's share of FLOP."""
        if self.steps is None:
            return None
        flops = structure.flops(run, [run.max_length])
        return (self.tokens + self.measured_tokens * flops.forward / flops.total) / tokens_per_s


def forecast(config: TrainConfig, rows: Dataset | None, held_out: Dataset | None, longest: int,
             rows_per_anchor: int = 0) -> Forecast:
    """The forecast of a run over these rows; without any, over rows of `longest` tokens."""
    if rows is None:
        return Forecast(0, 0, config.steps or None, float(config.steps * length.batch_of(config, 0) * longest))
    units = len(length.units_of(rows.examples, config))
    steps = length.total_steps(config, units)
    epoch = length.steps_per_epoch(config, units)
    passes, rest = divmod(steps, epoch)
    tokens = rows.tokens * (passes + min(1.0, rest * length.batch_of(config, units) / units))
    tokens += TYPICAL * length.anchors_learned(config, units, rows_per_anchor)
    if held_out is None:
        return Forecast(len(rows.examples), 0, steps, tokens)
    every = length.eval_every(config, epoch, steps, held_out.tokens / rows.tokens)
    times = 1 + -(-steps // every)  # before the first step, and always after the last
    return Forecast(len(rows.examples), len(held_out.examples), steps, tokens, times, times * held_out.tokens,
                    length.patience(config) > 0)
