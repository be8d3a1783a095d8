"""A training step: how fast, how much memory, and which ops it spends its time in."""

from __future__ import annotations

import gc
import inspect
import math
import os
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import wraps
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ..backends.base import OPS, Backend, Ops
from ..data.lengths import lengths_of
from ..data.packing import Example
from ..formats.bundle import Bundle, open_bundle
from ..formats.gguf import FORMATS
from ..machine import device
from ..models.networks import open_network
from ..training.batches import shares
from ..training.config import TrainConfig
from ..training.cost import Speed
from ..training.length import batch_of, units_of
from ..training.plan import Plan
from ..training.trainer import Trainer

if TYPE_CHECKING:
    from ..objectives.base import Objective

MEASURED_STEPS = 2  # the first also reads the weights from the disk; the last is timed
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
    rows = random_rows(trainer.model.structure.n_tokens, batch, config.row_limit, config.seed)
    trainer.add_examples(rows)
    trainer.step()
    first = process_seconds()
    seconds = [trainer.step().seconds for _ in range(timed)]
    peak_rss = device.peak_rss()
    with clocked(trainer.ops) as spent:
        clocked_s = sum(trainer.step().seconds for _ in range(CLOCKED_STEPS))
    ops = trainer.ops
    plan_run = trainer.plan.run
    work = trainer.model.structure.flops(plan_run, [config.row_limit] * batch)
    peaks = ops.peak(config.precision), ops.peak(config.precision, True)
    least_s = work.forward / peaks[0] + work.backward / peaks[1]
    step_s = statistics.median(seconds)
    tokens = batch * config.row_limit
    here = device.read_device()
    return {"bench": "train", "device": here.name, "cpu": here.cpu,
            "model": str(bundle.path), "isa": ops.isa, "precision": config.precision,
            "products": ops.products(config.precision),
            "kept": plan_run.kept, "blocks": trainer.model.structure.n_layer - plan_run.lowest,
            "micro_batch": plan_run.max_tokens,
            "threads": plan_run.threads, "options": config.to_json(),
            "tokens_per_s": tokens / step_s, "step_s": step_s, "step_s_least": min(seconds), "first_step_s": first,
            "peak_rss_mib": peak_rss / 2**20, "flop_per_token": work.total / tokens,
            "flops_per_s": work.total / step_s, "mfu": least_s / step_s,
            "peak_forward_gflops": peaks[0] / 1e9, "peak_backward_gflops": peaks[1] / 1e9,
            "ops": {
                name: {"calls": op.calls // CLOCKED_STEPS, "seconds": op.seconds / CLOCKED_STEPS,
                       "share": op.seconds / clocked_s, "gflops": op.flops / op.seconds / 1e9 if op.flops else None}
                for name, op in sorted(spent.items(), key=lambda item: -item[1].seconds)}}


def two_steps(bundle: Bundle, config: TrainConfig, plan: Plan, objective: Objective, examples: Sequence[Example] = (),
              on_step: Callable[[int], None] = lambda _: None, *,
              ops: Backend | None = None) -> tuple[float, Speed]:
    """Measures (tokens a second, the speed) of real steps within the memory of `plan`, on these rows, or on random ones
    of the greatest length where there are none. That is quick, and not precise enough to be kept. on_step: called with
    the number of steps done. ops: as of a Trainer; it keeps the memory that it computed in.

    A step has the options' batch, or as many rows as fill a micro-batch where that is less. Raises the errors of
    Trainer, also where the memory suffices for the plan, and no longer for this process, which has grown a little.
    """
    length = plan.run.max_length
    batch = batch_of(config, len(units_of(examples, config)))
    n_vocab = open_network(bundle.gguf).structure.n_tokens
    rows = examples or random_rows(n_vocab, MEASURED_STEPS * batch, length, config.seed)
    known = lengths_of(rows, share=shares(config))
    share = known.computed_share(batch, plan.run.max_tokens, plan.run.prefix)
    computed = share * sum(row.tokens.size for row in rows) / len(units_of(rows, config))
    filling = math.ceil(plan.run.max_tokens / computed)
    quick = replace(config, steps=MEASURED_STEPS, batch_size=min(batch, filling))
    trainer = Trainer(bundle, quick, lengths=known, objective=objective, ops=ops)
    trainer.add_examples(rows)
    on_step(0)
    for done in range(1, MEASURED_STEPS + 1):
        last = trainer.step()
        on_step(done)
    sizes = [example.tokens.size for example in trainer.batch(MEASURED_STEPS)]
    flops = trainer.model.structure.flops(trainer.plan.run, sizes)
    run = trainer.plan.run
    here = device.read_device()
    speed = Speed(here.name, trainer.ops.isa, config.precision, run.kept,
                  trainer.model.structure.n_layer - run.lowest, run.threads, run.max_tokens,
                  flops.total / last.seconds)
    del trainer
    gc.collect()  # its parts point to one another; what follows has its memory
    bundle.gguf.release()
    device.trim()
    return last.tokens / last.seconds, speed


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


def arguments(name: str) -> list[str]:
    """What the arguments of an op are called."""
    return list(inspect.signature(getattr(Ops, name)).parameters)[1:]


def flops(name: str, a: dict[str, Any]) -> int:
    """Counts the FLOP of a call, a multiplication and an addition as 2; 0 where memory is the limit.

    A frozen product that adds its adapter's is counted without it. head_backward makes the logits a second time.
    """
    match name:
        case "matmul_forward":
            return 2 * int(a["out"].size) * int(a["inp"].shape[1])
        case "matmul_backward":
            return 2 * int(a["dinp"].size) * int(a["dout"].shape[1])
        case "matmul_dweight":
            return 2 * int(a["dw"].size) * int(a["dout"].shape[0])
        case "head_forward" | "head_backward" | "head_sample" | "head_top":
            begin, end = a.get("part", (0, -1))
            if end < 0:
                end = a["w"].nbytes // FORMATS[a["fmt"]].size * FORMATS[a["fmt"]].block // a["h"].shape[1]
            both = 2 if name == "head_backward" else 1
            return 2 * both * int(a["h"].size) * int(end - begin)
        case "attention_forward" | "attention_backward":
            products = 2 if name == "attention_forward" else 5
            return 2 * products * _pairs(a) * int(a["q"].shape[1] * a["q"].shape[2])
    return 0


def _pairs(a: dict[str, Any]) -> int:
    """The pairs of a query and a token that it sees, of a call of attention."""
    queries = slice(-len(a["q"]), None)
    before = a["position"][queries]
    after = np.zeros_like(before)
    if (begin := a.get("begin")) is not None:
        after = (a["end"] - begin)[queries] - 1 - before
    if window := a.get("window", 0):
        before, after = np.minimum(before, window - 1), np.minimum(after, window - 1)
    return int((before + after + 1).sum())


@dataclass
class Spent:
    """What all calls of an op took and did. Ops are told by their name and their arguments' names, so that new ones
    need nothing here.
    """

    calls: int = 0
    seconds: float = 0.0
    flops: int = 0


@contextmanager
def clocked(ops: Backend) -> Iterator[dict[str, Spent]]:
    """While it lasts, every op is timed: name, with the format of its weights if it has any -> Spent."""
    spent: dict[str, Spent] = {}
    for name in OPS:
        setattr(ops, name, _clocked(name, getattr(ops, name), spent))
    try:
        yield spent
    finally:
        for name in OPS:
            delattr(ops, name)


def _clocked(name: str, function: Callable[..., Any], spent: dict[str, Spent]) -> Callable[..., Any]:
    parameters = arguments(name)

    @wraps(function)
    def call(*args: Any, **kwargs: Any) -> Any:
        given = dict(zip(parameters, args, strict=False)) | kwargs
        began = time.perf_counter()
        result = function(*args, **kwargs)
        seconds = time.perf_counter() - began
        op = spent.setdefault(f"{name} {given['fmt']}" if "fmt" in given else name, Spent())
        op.calls += 1
        op.seconds += seconds
        op.flops += flops(name, given)
        return result

    return call
