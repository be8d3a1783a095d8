"""The learning rate of a device's run in a round, and how far such a run can move the values of the adapter.

If the task leaves the rate open, it is high in a short round. A run of edgetune train learns all by itself. A round is
one of many, and the average over devices takes away what each learned by chance, so that few steps may be large:
measured with 8 steps of a row each, and 20 devices (docs/results). With more steps the rate falls by their root, as
chance makes devices go apart, down to the usual one.

An answer that moved the values further than its training can is a lie. The rule needs the task and the answer only, so
it holds also if there are few other answers, or none. A step of Adam moves a value by about the rate (Kingma and Ba
2015, section 2.1), S steps at most by S times that. Most gradients point to and fro, so that S steps move the values by
about the root of S: measured 1.0 to 1.2 times with SmolLM2, and up to 2.7 with tiny models that memorise few rows. Slow
trainings that last go further than that, to where the loss is least: tiny models by 0.05 in 20,000 steps.
"""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np

from ....data.files import read_rows
from ....errors import MismatchError
from ....training.config import TrainConfig
from ....training.length import peak_rate, steps_per_epoch, total_steps
from .answer import LEAVE_OUT, RoundAnswer
from .options import FAMILIES, A, B
from .task import RoundTask

SHORT = 8  # steps, up to which the rate is the highest
HIGHEST = {FAMILIES[A + B]: 4e-3, FAMILIES[A]: 4e-3, FAMILIES[B]: 8e-3}  # B has to move further
LAST = 0.05  # of the rate, in the last of the planned rounds: small steps take away what devices differ in by chance
TEXT = ".txt"  # a file whose number of rows is known only when it is divided
STEADY = 2.0  # times the rate for each step, if all steps went one way
WANDERING = 4.0  # times the rate, and the root of the steps
MOST_STEPS = 10_000  # of which the root grows: a device can claim any number of rows
FAR = 0.25  # the values of adapters that learned all they could are smaller
LARGEST = 8.0  # times the root mean square: the largest value
NOISE = 1.5  # times the deviation of the noise: its root mean square with the chance in it
FLOAT16 = 2.0**-10  # of a value that is sent whole, by which rounding may move it


def share_of(planned: int, number: int) -> float:
    """Returns the share of its rate that a round has: from 1 in the first to LAST in the last of the planned rounds,
    and LAST after them. planned 0: always 1. number: of the round, from 1.
    """
    if planned == 0:
        return 1.0
    done = min((number - 1) / max(planned - 1, 1), 1.0)
    return 1.0 - (1.0 - LAST) * done


def rate_of(config: TrainConfig, rows: Path) -> float:
    """Returns the peak learning rate of a run on a file of rows. Raises DataError for rows that cannot be read."""
    unknown = not isinstance(config.lr, str) or rows.suffix.lower() == TEXT
    return rate_for(config, 0 if unknown else sum(1 for _ in read_rows(rows)))


def rate_for(config: TrainConfig, count: int) -> float:
    """Returns the peak learning rate of a run on this number of rows. count 0: it is unknown."""
    usual = peak_rate(config, count)
    if not isinstance(config.lr, str) or count == 0 or isinstance(config.epochs, str):
        return usual
    steps = config.steps or config.epochs * steps_per_epoch(config, count)
    return max(HIGHEST[config.family.name] * min(math.sqrt(SHORT / steps), 1.0), usual)


def reach_of(task: RoundTask, rows: int, values: int) -> tuple[float, float]:
    """Returns (the root mean square of all changes at most, the largest of them) for these numbers of rows that a
    device learned and of values, with the noise of the task.
    """
    if task.noise:  # then the rows are not said
        return (task.noise.most / math.sqrt(values) + NOISE * task.noise.deviation,
                task.noise.most + LARGEST * task.noise.deviation)
    rate, steps = _length(task, rows)
    mean = min(STEADY * rate * steps, max(WANDERING * rate * math.sqrt(min(steps, MOST_STEPS)), FAR))
    return mean, LARGEST * mean


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
    most, peak = reach_of(task, answer.facts.rows, values)
    mean, error = math.sqrt(moved / values), math.sqrt(rounded / values)
    if math.isfinite(moved) and (mean > most + error or largest > peak + LARGEST * error):
        raise MismatchError(f"the update moves its values by {mean:.3g} on average and {largest:.3g} at most, further "
                            f"than a training of {answer.facts.rows} rows can, {most:.3g} and {peak:.3g}",
                            LEAVE_OUT)
