"""The reference model's log p of a run's rows, before the adapter changes: from the run's folder, from the user's
cache, and otherwise by a pass over the rows.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np

from ..data.dataset import Dataset
from ..data.packing import Example
from ..version import __version__
from .begin import check_start
from .reference import FILE, cached, chunks
from .throttle import MemoryPressure
from .trainer import Trainer

CHUNK = 64  # examples between two looks at the clock


def prepare(trainer: Trainer, sets: Sequence[Dataset | None], out: Path, start: Mapping[str, Any] | None,
            should_stop: Callable[[], bool]) -> None:
    """Gives the trainer the reference's log p of all rows that it will see, if its objective needs it.

    start: path and fingerprint of the start adapter, which is the reference; None: the base is. Raises MismatchError
    if that adapter is needed and has changed, Interrupted once should_stop returns True, DiskError.
    """
    wanted = list(chain(_to_come(trainer), *(data.examples for data in sets[1:] if data)))
    reference = trainer.reference
    if trainer.source.refers or not trainer.objective.needs_reference or not reference.missing(wanted):
        return
    reference.is_base = start is None
    name = json.dumps([__version__, trainer.bundle.fingerprint, start and start["fingerprint"], trainer.ops.isa,
                       trainer.ops.products(trainer.config.precision)] + [reference.top] * (reference.top > 0))
    of_data = json.dumps([name, *(data and data.digest for data in sets)])
    for path in (out / FILE, cached(of_data)):
        if reference.missing(wanted):
            reference.load(path, name)
    if left := reference.missing(wanted):
        with _as_it_began(trainer, start):
            _compute(trainer, left, out / FILE, name, should_stop)
        reference.save_cached(of_data, name)
    reference.save(out / FILE, name)


def _to_come(trainer: Trainer) -> Iterator[Example]:
    """The examples of the steps to come: all of them, where these are an epoch or more."""
    first = trainer.steps_done + 1
    for step in range(first, min(trainer.total_steps + 1, first + 2 * trainer.steps_per_epoch)):
        yield from trainer.batch(step)


@contextmanager
def _as_it_began(trainer: Trainer, start: Mapping[str, Any] | None) -> Iterator[None]:
    """Holds the adapter that training starts from in the arena within the context."""
    if start is None:
        yield
        return
    check_start(start)
    lora = trainer.arena.flat("lora")
    now = lora.copy()
    trainer.load(start["path"])
    try:
        yield
    finally:
        np.copyto(lora, now)


def _compute(trainer: Trainer, examples: list[Example], path: Path, name: str,
             should_stop: Callable[[], bool]) -> None:
    """Computes log p of the examples; saves it as often as checkpoints, and when it is interrupted."""
    saved_at = time.monotonic()
    interval = trainer.config.checkpoint_seconds(path.parent)
    try:
        for part in chunks(examples, CHUNK):
            while trainer.reference.missing(part):
                with suppress(MemoryPressure):  # the loop repeats what was interrupted
                    trainer.refer(part, should_stop)
            if time.monotonic() - saved_at >= interval:
                trainer.reference.save(path, name)
                saved_at = time.monotonic()
    except BaseException:
        trainer.reference.save(path, name)
        raise
