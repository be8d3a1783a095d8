"""The learning rate of a device's run in a round, if the task leaves it open: high in a short round.

A run of edgetune train learns all by itself. A round is one of many, and the average over devices takes away what each
learned by chance, so that few steps may be large: measured with 8 steps of a row each, and 20 devices (docs/results).
With more steps the rate falls by their root, as chance makes devices go apart, down to the usual one.
"""

from __future__ import annotations

import math
from pathlib import Path

from ....data.files import read_rows
from ....training.config import TrainConfig
from ....training.length import peak_rate, steps_per_epoch
from ..sums.ways import FAMILIES, A, B

SHORT = 8  # steps, up to which the rate is the highest
HIGHEST = {FAMILIES[A + B]: 4e-3, FAMILIES[A]: 4e-3, FAMILIES[B]: 8e-3}  # B has to move further
LAST = 0.05  # of the rate, in the last of the planned rounds: small steps take away what devices differ in by chance
TEXT = ".txt"  # a file whose number of rows is known only when it is divided


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
