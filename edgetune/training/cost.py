"""The FLOP of a training step, its time at a speed that `edgetune lab bench train` has measured, and a forecast."""

from __future__ import annotations

import json
from dataclasses import dataclass, fields, replace
from pathlib import Path

from ..data.anchors import TYPICAL
from ..data.dataset import Dataset
from ..disk import read_small, state_folder
from ..errors import FormatError, MismatchError
from ..machine.device import Profile
from ..models.base import Flops, Structure
from ..models.linear import RunShape
from . import length
from .config import TrainConfig

UNPACK_FLOP = 32  # FLOP in the time of unpacking a weight; once a pass over a micro-batch
READ_FLOP = 500  # FLOP in the time of reading a byte of the file, as from a memory card on a small board
FLOP_A_CYCLE = {"neon": 8, "dotprod": 16}  # of a core, by its instruction set: one pipe of four floats, or two
REACHED = 0.4  # share of these FLOP that a training step reaches
UNHIDDEN = 0.2  # share of the reading time that does not overlap with computing


def cost_per_token(s: Structure, run: RunShape, read_bytes: int = 0) -> float:
    """The cost of a token in FLOP, or the equivalent of their time, in a full micro-batch of full rows.

    It sums the step's own FLOP, those of recomputed blocks, and of unpacking the weights. It adds the part of reading
    `read_bytes` a micro-batch from the file that does not overlap with computing.
    """
    return work_of(s, run).cost_per_token(run, read_bytes)


@dataclass(frozen=True)
class Work:
    """What a full row takes, however a run trades memory for speed. flops: of a step; blocks: weights of each; head:
    weights of it.
    """

    flops: Flops
    blocks: tuple[int, ...]
    head: int

    def cost_per_token(self, run: RunShape, read_bytes: int = 0) -> float:
        """See the function of this name."""
        n = len(self.blocks)
        again = n - run.lowest - run.kept  # blocks
        weights = sum(self.blocks) + sum(self.blocks[run.lowest:]) + sum(self.blocks[run.lowest:n - run.kept])
        computed = (self.flops.total + self.flops.blocks * again / n) / run.max_length
        computed += UNPACK_FLOP * (weights + self.head) / run.max_tokens
        reading = READ_FLOP * read_bytes / run.max_tokens
        return max(computed, reading) + UNHIDDEN * reading


def work_of(s: Structure, run: RunShape) -> Work:
    """The work of a run, by its family, targets, blocks and longest row."""
    blocks = tuple(s.block_weights(layer) for layer in range(s.n_layer))
    return Work(s.flops(run, [run.max_length]), blocks, s.head_weights)


@dataclass(frozen=True)
class Speed:
    """The speed that a device reached in `edgetune lab bench train`, and the options that decide it."""

    device: str
    isa: str
    precision: str
    kept: int  # blocks whose activations were not computed again
    blocks: int  # all trained blocks
    threads: int
    micro_batch: int  # tokens
    flops_per_s: float  # as Structure.flops counts


def state_file() -> Path:
    """The file of the measured speed: `edgetune lab bench train --save` writes it, plans read it."""
    return state_folder() / "speed.json"


def read_speed(path: Path) -> Speed:
    """Reads the file that `edgetune lab bench train --save` wrote. Raises FormatError for another file."""
    try:
        found = json.loads(read_small(path))
        speed = Speed(**{spec.name: found[spec.name] for spec in fields(Speed)})
        if not (isinstance(speed.threads, int) and 0.0 < speed.flops_per_s < float("inf") and speed.micro_batch >= 1
                and 1 <= speed.kept <= speed.blocks):
            raise ValueError
    except (OSError, ValueError, TypeError, KeyError):
        raise FormatError(f"{path} holds no measured speed", "make it with edgetune lab bench train --save") from None
    return speed


def profile_speed(profile: Profile, run: RunShape, micro_batch: int) -> Speed | None:
    """The speed of a board without a measurement, estimated from its cores and their clock; None if unknown.
    """
    if not (profile.ghz and profile.cores and profile.isa in FLOP_A_CYCLE):
        return None
    flops = min(run.threads, profile.cores) * profile.ghz * 1e9 * FLOP_A_CYCLE[profile.isa] * REACHED
    return Speed(profile.name, profile.isa, run.precision, 1, 1, run.threads, micro_batch, flops)


def check_speed(run: RunShape, speed: Speed) -> None:
    """Raises MismatchError where precision or threads are not those of the measurement."""
    for name in ("precision", "threads"):
        if (measured := getattr(speed, name)) != (value := getattr(run, name)):
            raise MismatchError(f"the speed was measured with {name} {measured}, the plan has {value}",
                                f"plan with --{name} {measured}, or measure with --{name} {value}")


def tokens_per_s(s: Structure, run: RunShape, speed: Speed, read_bytes: int = 0) -> float:
    """Tokens a second of full rows. `cost_per_token` accounts for micro-batches, recomputation and streaming, FLOP for
    the rest: a good estimate for models and rows that are close to the measured ones.
    """
    check_speed(run, speed)
    kept = max(1, round((s.n_layer - run.lowest) * speed.kept / speed.blocks))  # the same share
    measured = cost_per_token(s, replace(run, kept=kept, max_tokens=speed.micro_batch))
    flops = s.flops(run, [run.max_length]).total / run.max_length
    return speed.flops_per_s / flops * measured / cost_per_token(s, run, read_bytes)


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
