"""The length of a run, its learning rate and its measurements, by the options or by the amount of data.

Batches count units: a unit is a row, a group of rows, or with packing a pack.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace

from ..data.lengths import FORWARD
from ..data.packing import Example, grouped_indices, pack
from ..models.base import Network
from ..options import AUTO
from .config import AUTO_LENGTH, TrainConfig

ENOUGH_STEPS = 150  # steps that --epochs auto reaches if the data is small
MOST_EPOCHS = 15  # but it passes over the data this often at most
LARGEST_BATCH = 8  # of --batch-size auto
LEAST_BATCH = 4
RATE = 1e-3  # of --lr auto with LEAST_BATCH units in a step
PATIENCE = 3  # measurements in a row that are worse than the lowest one end a run of --epochs auto
LEAST_MEASUREMENTS = 5  # in such a run, after the one before the first step
MOST_MEASUREMENTS = 30
LONGEST_AUTO = 4096  # tokens that max_length "auto" is at most
GRANULE = 64  # tokens; auto is a multiple of it
MEASURING = 0.25  # of the time of the steps may be spent on measurements


def reading_limit(max_length: int | str, context: int) -> int:
    """The number of tokens after which rows are cut or skipped. context: tokens that the model was made for."""
    return max(AUTO_LENGTH, min(LONGEST_AUTO, context)) if isinstance(max_length, str) else max_length


def sized(config: TrainConfig, longest: int) -> TrainConfig:
    """The options with max_length as a number: auto becomes the tokens of the longest row, rounded up."""
    if not isinstance(config.max_length, str):
        return config
    return replace(config, max_length=max(AUTO_LENGTH, min(-(-longest // GRANULE) * GRANULE, LONGEST_AUTO)))


def fitted(config: TrainConfig, network: Network) -> TrainConfig:
    """The options with rows that are not longer than a network's documents may be, and no shared prefixes where tokens
    see those after them.
    """
    most = network.structure.longest
    if most is not None and config.row_limit > most:
        config = replace(config, max_length=most)
    return config if network.is_causal else replace(config, share_prefixes="off")


def units_of(examples: Sequence[Example], config: TrainConfig) -> list[list[int]]:
    """The indices of the examples in each unit."""
    return pack(examples, config.row_limit) if config.packing else grouped_indices(examples)


def batch_of(config: TrainConfig, units: int) -> int:
    """Units in a step. auto: as many as make MOST_EPOCHS last ENOUGH_STEPS, within LEAST_BATCH and LARGEST_BATCH.
    units 0: their number is unknown.
    """
    if not isinstance(config.batch_size, str):
        return config.batch_size
    return min(max(units * MOST_EPOCHS // ENOUGH_STEPS, LEAST_BATCH), LARGEST_BATCH) if units else LARGEST_BATCH


def largest_norm(config: TrainConfig, network: Network) -> float:
    """The norm to which a gradient is clipped; 0: none. auto: what the network says."""
    return network.structure.max_grad_norm if isinstance(config.max_grad_norm, str) else config.max_grad_norm


def peak_rate(config: TrainConfig, units: int) -> float:
    """The highest learning rate. auto grows with the batch up to LARGEST_BATCH, because larger batches have less noise
    in the gradient. units 0: their number is unknown.
    """
    if not isinstance(config.lr, str):
        return config.lr
    return config.family.rate * RATE * min(max(batch_of(config, units), LEAST_BATCH), LARGEST_BATCH) / LEAST_BATCH


def steps_per_epoch(config: TrainConfig, units: int) -> int:
    return -(-units // batch_of(config, units))


def auto_epochs(config: TrainConfig, units: int) -> int:
    """Whole passes over the data that last ENOUGH_STEPS, 1 to MOST_EPOCHS; all rows are seen equally often."""
    steps = max(steps_per_epoch(config, units), 1)
    return min(-(-ENOUGH_STEPS // steps), MOST_EPOCHS)


def epochs_of(config: TrainConfig, units: int) -> float:
    """Passes of a run over this data, which need not be whole."""
    if config.steps:
        return config.steps / max(steps_per_epoch(config, units), 1)
    return auto_epochs(config, units) if isinstance(config.epochs, str) else config.epochs


def total_steps(config: TrainConfig, units: int, more: float = 0.0) -> int:
    """Returns the steps of a run. more: passes that replace the options'."""
    if config.steps and not more:
        return config.steps
    return max(1, round((more or epochs_of(config, units)) * steps_per_epoch(config, units)))


def anchors_learned(config: TrainConfig, units: int, rows_per_anchor: int) -> int:
    """Anchors that a run over this number of units learns, repetitions included. rows_per_anchor 0: none."""
    return total_steps(config, units) * batch_of(config, units) // rows_per_anchor if rows_per_anchor else 0


def is_auto(config: TrainConfig) -> bool:
    """Whether the data decides how long the run is."""
    return not config.steps and config.epochs == AUTO


def eval_every(config: TrainConfig, epoch: int, total: int, held_out: float) -> int:
    """Steps between two measurements: by default an epoch. If the data decides the length of the run, measuring takes
    at most MEASURING of the time of the steps, within LEAST_MEASUREMENTS and MOST_MEASUREMENTS.

    epoch, total: steps of an epoch and of the run. held_out: held-out tokens as a share of those of an epoch.
    """
    if config.eval_every or not is_auto(config):
        return config.eval_every or epoch
    cost = held_out * epoch * FORWARD  # of a measurement, in steps
    most = min(MEASURING * total / cost if cost else MOST_MEASUREMENTS, MOST_MEASUREMENTS)
    return min(max(epoch, math.ceil(total / most)), -(-total // LEAST_MEASUREMENTS))


def patience(config: TrainConfig) -> int:
    """Measurements that end the run, as `is_enough` counts them; 0: none end it."""
    if isinstance(config.patience, str):
        return PATIENCE if is_auto(config) else 0
    return config.patience


def is_enough(config: TrainConfig, misses: int, overfitted: int) -> bool:
    """Whether measurements end the run: after `patience` of them without improvement, or with auto after as many that
    are worse although the training rows are known (see `state`).
    """
    count = overfitted if config.patience == AUTO else misses
    return 0 < patience(config) <= count
