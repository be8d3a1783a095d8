"""A training step: how fast, how much memory, and which ops it spends its time in."""

from __future__ import annotations

import os
import statistics
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from ..data.packing import Example
from ..formats.bundle import open_bundle
from ..machine import device
from ..training.config import TrainConfig
from ..training.length import batch_of
from ..training.trainer import Trainer
from .ops import Spent, clocked

CLOCKED_STEPS = 2  # more steps, with a clock around every op, after those that are timed


def run(model: str | Path, config: TrainConfig) -> dict[str, Any]:
    """Time config.steps steps of config.batch_size rows of config.max_length random token ids, after one that is not.

    Of the result: step_s is the median, first_step_s counts from the start of this process, peak_rss_mib is of the
    whole process, mfu the time that the FLOP of `Structure.flops` take at the peak of a register loop (forward's and
    backward's each) as a share of step_s. ops: calls, seconds and gflops (null for what is no product) a step.
    """
    bundle = open_bundle(model)
    timed = config.steps
    batch = batch_of(config, 0)
    trainer = Trainer(bundle, replace(config, batch_size=batch, steps=1 + timed + CLOCKED_STEPS))
    rows = random_rows(trainer.model.structure.n_vocab, batch, config.max_length, config.seed)
    trainer.add_examples(rows)
    trainer.step()
    first = process_seconds()
    seconds = [trainer.step().seconds for _ in range(timed)]
    peak_rss = device.peak_rss()
    with clocked(trainer.ops) as spent:
        clocked_s = sum(trainer.step().seconds for _ in range(CLOCKED_STEPS))
    ops = trainer.ops
    plan_run = trainer.plan.run
    work = trainer.model.structure.flops(plan_run, [config.max_length] * batch)
    peaks = ops.peak(config.precision), ops.peak(config.precision, True)
    least_s = work.forward / peaks[0] + work.backward / peaks[1]
    step_s = statistics.median(seconds)
    tokens = batch * config.max_length
    here = device.read_device()
    return {"bench": "train", "device": here.model or here.cpu or here.machine, "cpu": here.cpu,
            "model": str(bundle.path), "isa": ops.isa, "precision": config.precision,
            "products": ops.products(config.precision),
            "kept": plan_run.kept, "blocks": trainer.model.structure.n_layer - plan_run.lowest,
            "micro_batch": plan_run.max_tokens,
            "threads": plan_run.threads, "options": config.to_json(),
            "tokens_per_s": tokens / step_s, "step_s": step_s, "step_s_least": min(seconds), "first_step_s": first,
            "peak_rss_mib": peak_rss / 2**20, "flop_per_token": work.total / tokens,
            "flops_per_s": work.total / step_s, "mfu": least_s / step_s,
            "peak_forward_gflops": peaks[0] / 1e9, "peak_backward_gflops": peaks[1] / 1e9,
            "ops": {name: _share(op, clocked_s) for name, op in _longest_first(spent)}}


def random_rows(n_vocab: int, rows: int, length: int, seed: int) -> list[Example]:
    """Rows of random token ids, every token but the first supervised; the same for the same seed."""
    tokens = np.random.default_rng(seed).integers(0, n_vocab, (rows, length), np.int32)
    weights = np.ones(length, np.float32)
    weights[0] = 0.0
    return [Example(row, weights) for row in tokens]


def process_seconds() -> float:
    """Since this process was started, to a hundredth."""
    after_name = Path("/proc/self/stat").read_text().rpartition(")")[2].split()
    return time.clock_gettime(time.CLOCK_BOOTTIME) - int(after_name[19]) / os.sysconf("SC_CLK_TCK")  # field 22


def _longest_first(spent: dict[str, Spent]) -> list[tuple[str, Spent]]:
    return sorted(spent.items(), key=lambda item: -item[1].seconds)


def _share(op: Spent, whole: float) -> dict[str, Any]:
    return {"calls": op.calls // CLOCKED_STEPS, "seconds": op.seconds / CLOCKED_STEPS, "share": op.seconds / whole,
            "gflops": op.flops / op.seconds / 1e9 if op.flops else None}
