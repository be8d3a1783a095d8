"""The reach of a device's training: an answer that moved the values of the adapter further is a lie.

The rule needs the task and the answer only, so it holds also if there are few other answers, or none. A step of Adam
moves a value by about the rate (Kingma and Ba 2015, section 2.1), S steps at most by S times that. Most gradients point
to and fro, so that S steps move the values by about the root of S: measured 1.0 to 1.2 times with SmolLM2, and up to
2.7 with tiny models that memorise few rows. Slow trainings that last go further than that, to where the loss is
least: tiny models by 0.05 in 20,000 steps.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from ....errors import MismatchError
from ....training.length import total_steps
from ..sums.ways import A, B
from .answer import LEAVE_OUT, RoundAnswer
from .rate import rate_for, share_of
from .task import RoundTask

STEADY = 2.0  # times the rate for each step, if all steps went one way
WANDERING = 4.0  # times the rate, and the root of the steps
MOST_STEPS = 10_000  # of which the root grows: a device can claim any number of rows
FAR = 0.25  # the values of adapters that learned all they could are smaller
LARGEST = 8.0  # times the root mean square: the largest value
NOISE = 1.5  # times the deviation of the noise: its root mean square with the chance in it
FLOAT16 = 2.0**-10  # of a value that is sent whole, by which rounding may move it


@dataclass(frozen=True)
class Reach:
    """mean: the root mean square of all changes at most; largest: the largest of them."""

    mean: float
    largest: float


def reach_of(task: RoundTask, rows: int, values: int) -> Reach:
    """Returns the reach for these numbers of rows that a device learned and of values, with the noise of the task."""
    if task.noise:  # then the rows are not said
        return Reach(task.noise.most / math.sqrt(values) + NOISE * task.noise.deviation,
                     task.noise.most + LARGEST * task.noise.deviation)
    rate, steps = _length(task, rows)
    mean = min(STEADY * rate * steps, max(WANDERING * rate * math.sqrt(min(steps, MOST_STEPS)), FAR))
    return Reach(mean, LARGEST * mean)


def usual_norm(task: RoundTask, rows: int) -> float:
    """Returns the norm of an update, as screening.py measures it, whose values went to and fro in each step, by chance.
    """
    rate, steps = _length(task, rows)
    mean = task.noise.deviation if task.noise else rate * math.sqrt(min(steps, MOST_STEPS))
    squared = 0.0
    for pair in task.pairs.values():
        (n, rank), k = pair.b.shape, pair.a.shape[1]
        both = mean**2 * n * k * rank if task.half == A + B else 0.0
        of_b = n * float(np.sum(np.square(pair.a, dtype=np.float64))) if B in task.half else 0.0
        of_a = k * float(np.sum(np.square(pair.b, dtype=np.float64))) if A in task.half else 0.0
        squared += (pair.scale * mean) ** 2 * (of_b + of_a + both)
    return math.sqrt(squared)


def _length(task: RoundTask, rows: int) -> tuple[float, int]:
    """Returns (the learning rate, the steps) of a device's training."""
    rate = rate_for(task.config, rows) * share_of(task.options.planned_rounds, task.number)
    return rate * max(1.0, task.config.family.options().get("lora_plus", 1.0)), total_steps(task.config, rows)


def check_reach(task: RoundTask, answer: RoundAnswer) -> None:
    """Raises MismatchError for an answer whose values moved further than the task's training can move them. Values that
    are not finite pass: screening.py leaves them out.
    """
    values = 0
    moved = rounded = largest = 0.0
    for name, start in task.pairs.items():
        began, after = answer.began(start), answer.pair(name)
        for half in task.half:
            before = getattr(began, half).astype(np.float64)
            with np.errstate(invalid="ignore"):
                change = getattr(after, half) - before
            values += change.size
            moved += float(np.sum(change**2))
            largest = max(largest, float(np.abs(change).max()))
            if task.half == A + B:  # which are sent whole
                rounded += float(np.sum((FLOAT16 * before) ** 2))
    reach = reach_of(task, answer.facts.rows, values)
    mean, error = math.sqrt(moved / values), math.sqrt(rounded / values)
    if math.isfinite(moved) and (mean > reach.mean + error or largest > reach.largest + LARGEST * error):
        raise MismatchError(f"the update moves its values by {mean:.3g} on average and {largest:.3g} at most, further "
                            f"than a training of {answer.facts.rows} rows can, {reach.mean:.3g} and "
                            f"{reach.largest:.3g}", LEAVE_OUT)
