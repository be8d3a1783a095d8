"""How much a training step computes, and how long that takes at a speed that `edgetune bench train` has measured."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, fields
from pathlib import Path

from .config import TrainConfig
from .errors import FormatError, MismatchError
from .model import BACKWARD_GROUPS
from .projection import Run
from .shape import Shape


@dataclass(frozen=True)
class Flops:
    """Of one step: a multiplication and an addition are 2."""

    forward: int
    backward: int

    @property
    def total(self) -> int:
        return self.forward + self.backward


def step_flops(s: Shape, run: Run, lengths: Sequence[int]) -> Flops:
    """What a step on documents of these lengths has to compute, all but their last tokens supervised.

    Forward: 2 a token and weight of the projections, 2 a supervised token and weight of the head, 4 C a head and pair
    of tokens that see each other. Backward: the same again where the gradient passes (attention twice), down to what
    is trained. Not counted: what is computed again, the adapter's own products, embedding, norms and the like.
    """
    tokens = sum(lengths)
    weights = {name: n * k for name, (n, k) in s.linear_shapes().items()}
    attention = [4 * s.n_head * s.d_head * sum(_pairs(n, window) for n in lengths) for window in s.windows]
    deepest = max(i for i, group in enumerate(BACKWARD_GROUPS) if set(group) & set(run.targets))
    passed = sum(weights[name] for group in BACKWARD_GROUPS[:deepest] for name in group)  # in the lowest trained block
    above = run.lowest + 1
    lowest_attention = attention[run.lowest] if deepest == len(BACKWARD_GROUPS) - 1 else 0
    head = 2 * (tokens - len(lengths)) * s.n_vocab * s.d_model
    whole = sum(weights.values())
    return Flops(2 * tokens * s.n_layer * whole + sum(attention) + head,
                 2 * tokens * ((s.n_layer - above) * whole + passed)
                 + 2 * (sum(attention[above:]) + lowest_attention) + head)


def _pairs(n: int, window: int) -> int:
    """(t, s) with s <= t < n, and s > t - window where there is a window."""
    w = min(window or n, n)
    return w * (w + 1) // 2 + (n - w) * w


@dataclass(frozen=True)
class Speed:
    """What a device reached in `edgetune bench train`, and with which of the options that decide it."""

    device: str
    isa: str
    precision: str
    recompute: str
    threads: int
    flops_per_s: float  # as step_flops counts


def read_speed(path: Path) -> Speed:
    """From the file that `edgetune bench train --save` wrote. Raises FormatError for another file."""
    try:
        found = json.loads(path.read_bytes())
        speed = Speed(**{spec.name: found[spec.name] for spec in fields(Speed)})
        if not (isinstance(speed.threads, int) and 0.0 < speed.flops_per_s < float("inf")):
            raise ValueError
    except (OSError, ValueError, TypeError, KeyError):
        raise FormatError(f"{path} holds no measured speed", "make it with edgetune bench train --save") from None
    return speed


def predict_seconds(s: Shape, run: Run, config: TrainConfig, speed: Speed) -> float:
    """Of a step of full rows, by its FLOP alone: good for models and rows that are not far from the measured ones.

    Raises MismatchError where precision, recompute or threads are not those of the measurement.
    """
    for name, value in {"precision": config.precision, "recompute": config.recompute, "threads": run.threads}.items():
        if (measured := getattr(speed, name)) != value:
            raise MismatchError(f"the speed was measured with {name} {measured}, the plan has {value}",
                                f"plan with --{name} {measured}, or measure with --{name} {value}")
    return step_flops(s, run, [run.max_length] * config.batch_size).total / speed.flops_per_s
