"""A training whose report is written when it ends, however it ends."""

from __future__ import annotations

import gc
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from ..adapters.store import RUN
from ..errors import EdgetuneError, Interrupted, NumericsError
from ..training.metrics import REPORT


@contextmanager
def reported(folder: Path) -> Iterator[None]:
    """Around a training in `folder`: writes its report where it is done, was stopped, or left the finite numbers."""
    try:
        yield
    except (Interrupted, NumericsError):
        try_report(folder)
        raise
    try_report(folder)


def is_reported(folder: Path) -> bool:
    """Whether a run's report says how it ended: it is written last, so a kill may have come before it."""
    report = folder / REPORT
    return report.exists() and report.stat().st_mtime_ns >= (folder / RUN).stat().st_mtime_ns


def try_report(folder: Path) -> None:
    """Writes a run's report. A run does not fail for it: if it cannot be written, there is none."""
    gc.collect()  # the trainer, whose parts point to one another, makes place within the memory that was planned
    from .report import write_report  # for the same reason not before
    with suppress(EdgetuneError):
        write_report(folder)
