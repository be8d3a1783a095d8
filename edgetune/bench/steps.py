"""The speed of two training steps, for a plan that no measurement fits: quick, and not precise enough to be kept."""

from __future__ import annotations

import gc
import math
from collections.abc import Callable, Sequence
from dataclasses import replace

from ..backends.base import Backend
from ..data.lengths import lengths_of
from ..data.packing import Example
from ..formats.bundle import Bundle
from ..machine.device import read_device, trim
from ..models.networks import open_network
from ..objectives.base import Objective
from ..training.batches import shares
from ..training.config import TrainConfig
from ..training.cost import Speed
from ..training.length import batch_of, units_of
from ..training.plan import Plan
from ..training.trainer import Trainer
from .train import random_rows

STEPS = 2  # the first also reads the weights from the disk; the last is timed


def run(bundle: Bundle, config: TrainConfig, plan: Plan, objective: Objective, examples: Sequence[Example] = (),
        on_step: Callable[[int], None] = lambda _: None, *, ops: Backend | None = None) -> tuple[float, Speed]:
    """(tokens a second, the speed) of real steps within the same memory as `plan`, on these rows; on random ones of the
    greatest length where there are none. on_step: called with the number of steps done. ops: as of a Trainer; it keeps
    the memory that it computed in.

    A step has the options' batch, or as many rows as fill a micro-batch where that is less. Raises the errors of
    Trainer, also where the memory suffices for the plan, and no longer for this process, which has grown a little.
    """
    length = plan.run.max_length
    batch = batch_of(config, len(units_of(examples, config)))
    rows = examples or random_rows(open_network(bundle.gguf).structure.n_vocab, STEPS * batch, length, config.seed)
    known = lengths_of(rows, share=shares(config))
    share = known.computed_share(batch, plan.run.max_tokens, plan.run.prefix)
    computed = share * sum(row.tokens.size for row in rows) / len(units_of(rows, config))
    filling = math.ceil(plan.run.max_tokens / computed)
    quick = replace(config, steps=STEPS, batch_size=min(batch, filling))
    trainer = Trainer(bundle, quick, lengths=known, objective=objective, ops=ops)
    trainer.add_examples(rows)
    on_step(0)
    for done in range(1, STEPS + 1):
        last = trainer.step()
        on_step(done)
    sizes = [example.tokens.size for example in trainer.batch(STEPS)]
    flops = trainer.model.structure.flops(trainer.plan.run, sizes)
    run = trainer.plan.run
    here = read_device()
    speed = Speed(here.model or here.cpu or here.machine, trainer.ops.isa, config.precision, run.kept,
                  trainer.model.structure.n_layer - run.lowest, run.threads, run.max_tokens,
                  flops.total / last.seconds)
    del trainer
    gc.collect()  # its parts point to one another; what follows has its memory
    bundle.gguf.release()
    trim()
    return last.tokens / last.seconds, speed
