"""A disk that is full for a moment, for tests: the kernel refuses to let any file of this process grow."""

import resource
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from commands import run


@contextmanager
def full_disk(limit: int) -> Iterator[None]:
    """No file may grow beyond `limit` bytes."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def check_full_disks(command: Sequence[Any], folder: Path) -> None:
    """A command whose output is in an empty folder ends in a sentence if the disk is full, and then succeeds."""
    refusals = 0
    for limit in (0, 30, 3000):
        before = sorted(folder.rglob("*"))
        with full_disk(limit):
            try:
                printed = run(*command, code=1)
            except AssertionError:  # it needs no larger file
                break
        assert ": File too large (" in printed.splitlines()[-1]
        assert printed.splitlines()[-1].endswith(" are free there); make room or choose another place")
        assert sorted(folder.rglob("*")) == before == []
        refusals += 1
    assert refusals
    for path in folder.iterdir():
        shutil.rmtree(path) if path.is_dir() else path.unlink()
    run(*command)
