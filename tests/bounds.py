"""Bounds of what a test's own process may use, so that an attack which would take the machine ends in an error."""

import resource
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from edgetune.machine.procfs import kib

CALLS = "more calls than allowed"


@contextmanager
def bounded_memory(nbytes: int) -> Iterator[None]:
    """This process may map that many bytes more than it has."""
    soft, hard = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (kib(Path("/proc/self/status"), "VmSize") + nbytes, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_AS, (soft, hard))


@contextmanager
def bounded_calls(most: int) -> Iterator[None]:
    """Raises AssertionError at the next call of a function, in Python or C, after that number."""
    left = most

    def count(_frame: object, event: str, _what: object) -> None:
        nonlocal left
        left -= event in ("call", "c_call")
        if left < 0:
            sys.setprofile(None)
            raise AssertionError(CALLS)

    sys.setprofile(count)
    try:
        yield
    finally:
        sys.setprofile(None)
