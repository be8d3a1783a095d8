"""Adapters of another device, and daemons of a fleet, for tests of roll-outs."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from daemons import Daemon, daemon
from learners import TRAIN, give
from services import same_holdout
from thread_workers import ThreadWorker

import edgetune


def write_adapters(model: Path, folder: Path) -> Path:
    """Writes FOLDER/on and FOLDER/off: adapters that answer so, whatever light is turned."""
    for answer in ("on", "off"):
        trainer = edgetune.Trainer(model, lr=2e-2, rank=4, steps=40, max_length=96, threads=1, batch_size=4)
        trainer.add([{"messages": [{"role": "user", "content": f"turn the light {i}"},
                                   {"role": "assistant", "content": answer}]} for i in range(40, 64)])
        trainer.train()
        trainer.save(folder / answer)
    return folder


@contextmanager
def on_device(model: Path, folder: Path, answer: str, **options: Any) -> Iterator[Daemon]:
    """A daemon where this answer is right, by 30 corrections, of which 6 are held out; "": it has no feedback, and
    unrelated text decides.
    """
    folder.mkdir()
    same_holdout(folder / "state")
    (folder / "canary.txt").write_text("turn the light on, turn the light on")
    with daemon(model, folder / "state", TRAIN, start_process=ThreadWorker, context=512,
                canary_rise="off" if answer else "100%", canary=str(folder / "canary.txt"), **options) as running:
        if answer:
            give(running.service, range(30), answer)
        yield running
