"""A training whose report is written when it ends, however it ends."""

from __future__ import annotations

import gc
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from ..errors import EdgetuneError, Interrupted, NumericsError


@contextmanager
def reported(folder: Path) -> Iterator[None]:
    """Around a training in `folder`: writes its report where it is done, was stopped, or left the finite numbers.

    A run does not fail for its report: where that cannot be written, there is none.
    """
    try:
        yield
    except (Interrupted, NumericsError):
        _write(folder)
        raise
    _write(folder)


def _write(folder: Path) -> None:
    gc.collect()  # the trainer, whose parts point to one another, makes place within the memory that was planned
    from .report import write_report  # for the same reason not before
    with suppress(EdgetuneError):
        write_report(folder)
