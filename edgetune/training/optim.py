"""AdamW on groups of an adapter's flat parameters, learning-rate schedules, clipping by the global norm."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import numpy.random

from ..adapters.base import Group
from ..backends.arena import Buffer
from ..backends.base import MOMENT_BYTES, MOMENTS, Ops
from .config import TrainConfig

EPS = 1e-8


def warmup_steps(config: TrainConfig, total: int) -> int:
    """config.warmup below 1 is a share of all steps, from 1 on a number of steps."""
    return round(config.warmup * total) if config.warmup < 1 else int(config.warmup)


def learning_rate(config: TrainConfig, peak: float, step: int, total: int) -> float:
    """The learning rate of step 1..total, as in transformers' schedules, but for the warm-up of W steps.

    There its first step has peak * 0 / W. Here no step has a rate of zero: it is peak * step / (W + 1) for step <= W.
    """
    warm = warmup_steps(config, total)
    if step <= warm:
        return peak * step / (warm + 1)
    if config.schedule == "constant":
        return peak
    done = (step - 1 - warm) / max(total - warm, 1)  # 0 at the first step after the warm-up, < 1 at the last
    if config.schedule == "linear":
        return peak * (1 - done)
    return peak * (0.5 * (1 + math.cos(math.pi * done)))


def clip(ops: Ops, grad: np.ndarray, max_norm: float) -> float:
    """Scales grad [n] to a norm of at most max_norm (0: no limit) and returns its norm before."""
    norm = math.sqrt(ops.sum_squares(grad))
    if max_norm and norm > max_norm:
        ops.scale(grad, max_norm / norm)
    return norm


def buffers(kind: str, groups: Sequence[Group]) -> list[Buffer]:
    """AdamW's moments of the parameters of all groups: m and v in "float", or both together in "8bit"."""
    if kind == "8bit":
        return [Buffer("adam_8bit", (sum(_blocks(group.size) for group in groups), MOMENT_BYTES), "run", "uint8")]
    n = sum(group.size for group in groups)
    return [Buffer(name, (n,), "run") for name in ("adam_m", "adam_v")]


def is_state(buffer: Buffer) -> bool:
    """Whether the next step depends on a buffer: the parameters, the optimizer's own or the family's."""
    return buffer.name == "lora" or buffer.name.startswith("adam_") or buffer.saved


def adamw(ops: Ops, param: np.ndarray, grad: np.ndarray, moments: Sequence[np.ndarray], groups: Sequence[Group],
          config: TrainConfig, lr: float, step: int) -> None:
    """One update (Loshchilov & Hutter 2019) of the groups, which are stored one after another.

    moments: the flat arrays of `buffers`.
    """
    start = 0
    block = 0
    for group in groups:
        part = slice(start, start + group.size)
        decay = config.weight_decay if group.decay else 0.0
        numbers = lr * group.lr_scale, config.beta1, config.beta2, EPS, decay, step
        end = block + _blocks(group.size)
        if len(moments) == 2:
            ops.adamw(param[part], grad[part], moments[0][part], moments[1][part], *numbers)
        else:
            packed = moments[0][block * MOMENT_BYTES:end * MOMENT_BYTES]
            rounding = seed_of(config.seed, step, start, 8)  # four numbers: so it differs from dropout's, of three
            ops.adamw8(param[part], grad[part], packed, *numbers, rounding)
        start = part.stop
        block = end


def _blocks(n: int) -> int:
    return -(-n // MOMENTS)


def seed_of(*words: int) -> int:
    """A seed made of numbers; as many others make another."""
    return int(np.random.SeedSequence(words).generate_state(1, np.uint64)[0])
