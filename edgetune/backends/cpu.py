"""The CPU as a backend: its kernel sets, its threads and its memory."""

from __future__ import annotations

import contextlib
import mmap
import time
from collections.abc import Callable

import numpy as np
from numpy.typing import DTypeLike

from ..errors import UnsupportedError
from . import _native
from .base import Array, Backend, Recorded
from .native import NativeOps, NativeTape

_PEAK_RUN = 1e-3  # seconds of a run of the register loop at least
_PEAK_SECONDS = 0.05  # of all its runs


def isa_names() -> list[str]:
    """The instruction sets that were compiled in, best first, "scalar" last."""
    return [name for name, _ in _native.kernel_sets()]


def usable(isa: str) -> bool:
    """Whether CPU and OS can run `isa`, and the environment variable EDGETUNE_ISA does not hide it."""
    return dict(_native.kernel_sets()).get(isa, False)


def cpu_features() -> str:
    """What detection found, space separated."""
    return _native.cpu_features()


def scratch_bytes(threads: int) -> int:
    """Bytes of scratch that a Cpu with this many threads needs."""
    size = _native.scratch_bytes(threads)
    if not size:
        raise ValueError(f"threads must be 1 to 1024, not {threads}")
    return size


def _check_isa(isa: str | None) -> None:
    have = [name for name, is_usable in _native.kernel_sets() if is_usable]
    if isa is None and not have:
        raise UnsupportedError("this CPU or build does not have an instruction set that EDGETUNE_ISA allows",
                               f"unset it, or name one of {', '.join(isa_names())}")
    if isa is not None and isa not in have:
        raise UnsupportedError(f"this CPU or build does not have instruction set {isa!r}",
                               f"choose from {', '.join(have) or 'none'}")


class Pages:
    """An anonymous mapping; its pages cost memory when they are first written.

    whole: it asks for huge pages, which make training faster; none extends beyond the mapping. Raises MemoryError.
    """

    def __init__(self, nbytes: int, whole: bool = True) -> None:
        try:
            self._mapping = mmap.mmap(-1, max(nbytes, mmap.PAGESIZE), mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
        except OSError as error:
            raise MemoryError(f"{nbytes} bytes: {error.strerror}") from None
        with contextlib.suppress(OSError):  # fewer misses in the page tables, where the kernel has huge pages
            self._mapping.madvise(mmap.MADV_HUGEPAGE if whole else mmap.MADV_NOHUGEPAGE)
        self.array: Array = np.frombuffer(self._mapping, np.uint8)

    def discard(self, begin: int) -> None:
        self._mapping.madvise(mmap.MADV_DONTNEED, begin, len(self._mapping) - begin)


class Cpu(NativeOps, Backend):
    """An instruction set, a pool of threads, and the scratch that all ops pack into.

    `isa` None takes the best that CPU and EDGETUNE_ISA allow. Threads start with the first op. Raises ValueError for a
    number of threads that is not 1 to 1024, UnsupportedError for an instruction set that is not available here.
    """

    def __init__(self, threads: int, isa: str | None = None) -> None:
        super().__init__("CPU", f"{threads} threads need")
        self._scratch_bytes = scratch_bytes(threads)
        _check_isa(isa)
        self._isa = isa
        self._threads = threads
        self._working = threads

    def _open(self, precision: int) -> _native._Context:
        scratch = self._scratch
        if scratch is None:
            scratch = np.zeros(self._scratch_bytes, np.uint8)
        handle = _native.context(self._threads, self._isa, precision, scratch)
        if isinstance(handle, int):
            raise MemoryError(f"could not start {self._threads} threads")
        return handle

    @property
    def threads(self) -> int:
        return self._threads

    @property
    def working(self) -> int:
        return self._working

    @working.setter
    def working(self, threads: int) -> None:
        if _native.set_threads(self._handle, threads):
            raise ValueError(f"{threads} threads cannot work: this CPU was opened with {self._threads}")
        self._working = threads

    def peak(self, precision: str, backward: bool = False) -> float:
        """The best of many runs of a millisecond, as short as an op: longer ones are interrupted by other programs."""
        handle = self._at(precision)
        n = 1_000
        seconds = 0.0
        while seconds < _PEAK_RUN:
            n *= 2
            began = time.perf_counter()
            _native.register_loop(handle, backward, n)
            seconds = time.perf_counter() - began
        best = 0.0
        end = time.perf_counter() + _PEAK_SECONDS
        while (began := time.perf_counter()) < end:
            operations = _native.register_loop(handle, backward, n)
            best = max(best, operations / (time.perf_counter() - began))
        return best

    @property
    def records(self) -> bool:
        return False

    def record(self, ops: Callable[[], None]) -> Recorded:
        return ops

    def tape(self) -> NativeTape:
        return NativeTape(self)

    @property
    def scratch_bytes(self) -> int:
        return self._scratch_bytes

    @property
    def is_paged(self) -> bool:
        return True

    def allocate(self, nbytes: int, whole: bool = True) -> Pages:
        return Pages(nbytes, whole)

    def upload(self, mapped: Array) -> Array:
        """The bytes themselves: products read the mapped file."""
        return mapped

    def place(self, array: Array) -> Array:
        return array

    def empty(self, shape: tuple[int, ...], dtype: DTypeLike = np.float32) -> Array:
        return np.empty(shape, dtype)
