"""The backend that a user asked for: the CPU, the GPU, or "auto", the GPU where one can be used."""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import TYPE_CHECKING

from ..errors import DeviceError, UsageError
from .base import Backend
from .cpu import Cpu

if TYPE_CHECKING:
    from .cuda import Cuda

def tell(line: str) -> None:
    """Where results are not: on a program's stderr."""
    print(line, file=sys.stderr, flush=True)


def open_backend(name: str, threads: int, say: Callable[[str], None] = tell) -> Backend:
    """name: auto, cpu or cuda; threads: of the CPU. say: is told, in a line, that auto took the GPU, and of what takes
    long.

    Raises UsageError for a GPU that was asked for and cannot be used.
    """
    if name == "cpu":
        return Cpu(threads)
    try:
        found = open_cuda(say)
    except DeviceError as error:
        if name == "auto":
            return Cpu(threads)
        raise UsageError(f"--backend cuda: {error.what}", error.hint) from None
    if name == "auto":
        say(f"computing on the GPU ({found.isa}); --backend cpu computes on the CPU")
    return found


def open_cuda(say: Callable[[str], None] = tell) -> Cuda:
    """Raises DeviceError, in a sentence, where no GPU can be used. Of what a GPU needs, nothing is imported before."""
    from .cuda import Cuda
    from .cuda_driver import open_driver
    return Cuda(open_driver(say))
