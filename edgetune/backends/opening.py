"""The backend that a user asked for: the CPU, the GPU, or "auto", the GPU where one can be used."""

from __future__ import annotations

import ctypes
import logging
from collections.abc import Callable
from functools import cache
from typing import TYPE_CHECKING

from ..errors import DeviceError, UsageError
from .base import Backend
from .cpu import Cpu

if TYPE_CHECKING:
    from .cuda import Cuda

DRIVER = "libcuda.so.1"
log = logging.getLogger("edgetune.backends")


def open_backend(name: str, threads: int, say: Callable[[str], None] = log.info) -> Backend:
    """name: auto, cpu or cuda; threads: of the CPU. say: is told, in a line, that auto took the GPU, and of what takes
    long; by default `log`, which shows nothing unless the program asks for it.

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


def open_cuda(say: Callable[[str], None] = log.info) -> Cuda:
    """Raises DeviceError, in a sentence, where no GPU can be used. Without a driver nothing of a GPU is imported."""
    if (library := _driver(DRIVER)) is None:
        raise DeviceError(f"no NVIDIA driver is installed ({DRIVER})", "use --backend cpu")
    from .cuda import Cuda
    from .cuda_driver import open_driver
    return Cuda(open_driver(library, say))


@cache
def _driver(name: str) -> ctypes.CDLL | None:
    """NVIDIA's, which is looked for once: `auto` asks whenever something is to compute."""
    try:
        return ctypes.CDLL(name)
    except OSError:
        return None
